"""The base of the trainers of language models, in one process or in many."""

from .checkpoints import own_class
from .resumable_trainer import ResumableTrainer


class LanguageModelTrainer(ResumableTrainer):
    """A [`ResumableTrainer`] that saves a model with its own code.

    transformers would save a model that is sharded by FSDP2 with torch's code in place of its own.
    """

    def _save(self, output_dir=None, state_dict=None):
        with own_class(self.accelerator.unwrap_model(self.model)):
            super()._save(output_dir, state_dict)
