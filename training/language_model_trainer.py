"""The base of the trainers of language models, in one process or in many."""

from .callbacks import EpochCallback
from .checkpoints import own_class
from .resumable_trainer import ResumableTrainer


class LanguageModelTrainer(ResumableTrainer):
    """A [`ResumableTrainer`] that announces each epoch to its data, and saves a model with its own code.

    Under several processes transformers does neither: data that is drawn anew for every epoch would stay that of the
    first, and a model that is shared out by FSDP2 would be saved with torch's code in place of its own.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(EpochCallback())

    def _save(self, output_dir=None, state_dict=None):
        with own_class(self.accelerator.unwrap_model(self.model)):
            super()._save(output_dir, state_dict)
