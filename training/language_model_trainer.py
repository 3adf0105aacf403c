"""Base class of the trainers of language models, for one process or several."""

from .checkpoints import own_class
from .resumable_trainer import ResumableTrainer


class LanguageModelTrainer(ResumableTrainer):
    """A [`ResumableTrainer`] whose saved model folders include the modeling code.

    For a model that is sharded by FSDP2, transformers would save torch's wrapper code in its place.
    """

    def _save(self, output_dir=None, state_dict=None):
        with own_class(self.accelerator.unwrap_model(self.model)):
            super()._save(output_dir, state_dict)
