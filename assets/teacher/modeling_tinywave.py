"""The TinyWave language model: Llama, with TinyWave's configuration and generation.

Parameter names, initialisation and computation are Llama's own, so a checkpoint of either loads into the other and
gives equal logits.
"""

from torch import nn
from transformers import LlamaForCausalLM, LlamaModel

from .configuration_tinywave import TinyWaveConfig
from .generation_tinywave import ModalityGenerationMixin


class TinyWaveModel(LlamaModel):
    """The decoder without its language-model head: token ids `(batch, length)` -> hidden states."""

    config_class = TinyWaveConfig


class TinyWaveForCausalLM(ModalityGenerationMixin, LlamaForCausalLM):
    """The decoder with its language-model head: token ids `(batch, length)` -> logits `(batch, length, vocab_size)`.

    `forward` takes and returns what `LlamaForCausalLM.forward` does; `generate` takes `output_modality` as well.
    """

    config_class = TinyWaveConfig

    def __init__(self, config: TinyWaveConfig):
        # LlamaForCausalLM would build a plain LlamaModel, which saves itself without this code.
        super(LlamaForCausalLM, self).__init__(config)
        self.model = TinyWaveModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


# Saving either class copies this file and the siblings it imports next to the weights.
TinyWaveModel.register_for_auto_class("AutoModel")
TinyWaveForCausalLM.register_for_auto_class("AutoModelForCausalLM")
