"""The TinyWave language model: Llama, with TinyWave's configuration and generation.

Parameter names, initialisation and computation are Llama's own, so a checkpoint of either loads into the other and
gives equal logits.
"""

from torch import nn
from transformers import LlamaForCausalLM, LlamaModel

from .configuration_tinywave import TinyWaveConfig
from .generation_tinywave import ModalityGenerationMixin
from .parallel_heads_tinywave import ParallelHeads
from .quantization_tinywave import INT8, Int8Linear, empty_int8, replace_linears


class TinyWaveModel(LlamaModel):
    """The decoder without its language-model head: token ids `(batch, length)` -> hidden states."""

    config_class = TinyWaveConfig

    def __init__(self, config: TinyWaveConfig):
        super().__init__(config)
        if config.weight_format == INT8:
            replace_linears(self, empty_int8)


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
        if config.num_parallel_heads:
            self.parallel_heads = ParallelHeads(config)
        if config.weight_format == INT8:
            replace_linears(self, empty_int8)
        self.post_init()

    def quantize(self) -> "TinyWaveForCausalLM":
        """Round the linear layers to 8 bits, in place, for generation on a CPU; returns the model itself.

        It then computes with a quarter of the bytes of float32, cannot be trained, and saves itself so. Raises
        `ValueError` for a model that has been quantized already.
        """
        if self.config.weight_format is not None:
            raise ValueError(f"found a model whose weight_format is {self.config.weight_format!r} already")
        replace_linears(self, Int8Linear.from_linear)
        self.config.weight_format = INT8
        return self.eval()


# Saving either class copies this file and the siblings it imports next to the weights.
TinyWaveModel.register_for_auto_class("AutoModel")
TinyWaveForCausalLM.register_for_auto_class("AutoModelForCausalLM")
