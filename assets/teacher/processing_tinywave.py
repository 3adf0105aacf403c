"""Conversations of text and speech segments to model inputs, and generated ids back to segments."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

from .configuration_tinywave import TinyWaveConfig
from .tokenization_tinywave import Segment, ids_to_segments, marker_of_modality, segments_to_ids

# The fields of `TinyWaveConfig` that say which id means what; the rest of the configuration is the model's business.
ID_LAYOUT_FIELDS = (
    "vocab_size",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "max_position_embeddings",
    "text_vocab_size",
    "text_offset",
    "text_marker_id",
    "speech_marker_id",
    "unit_offset",
    "num_units",
    "pitch_offset",
    "num_pitch_tokens",
    "style_offset",
    "num_style_tokens",
    "unit_rate",
    "unit_clock_rate",
    "pitch_rate",
    "style_rate",
)


class TinyWaveProcessor(ProcessorMixin):
    """Turn text and speech segments into the inputs of `TinyWaveForCausalLM.generate`, and ids back into segments.

    Speech is given as units, the output of a speech encoder, or for a model with pitch or style as `SpeechStreams`;
    this class reads and writes no audio.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): made by `build_tokenizer`.
        id_layout (`dict`): the fields of `TinyWaveConfig` named in `ID_LAYOUT_FIELDS`. Use
            [`~TinyWaveProcessor.from_config`] to read them from a configuration.

    Example:

        inputs = processor([("text", "A dog barks."), ("speech", units)], output_modality="speech")
        output = model.generate(**inputs, output_modality="speech", max_new_tokens=50)
        processor.ids_to_segments(output[0, inputs["input_ids"].shape[1] :])
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, id_layout: dict[str, Any], **kwargs):
        super().__init__(tokenizer, **kwargs)
        self.id_layout = dict(id_layout)
        self.config = TinyWaveConfig(**self.id_layout)

    @classmethod
    def from_config(cls, config: TinyWaveConfig, tokenizer: PreTrainedTokenizerFast) -> "TinyWaveProcessor":
        """Make the processor of a model from its configuration and its tokenizer."""
        return cls(tokenizer, id_layout={name: getattr(config, name) for name in ID_LAYOUT_FIELDS})

    def __call__(
        self,
        conversations: Sequence[Segment] | Sequence[Sequence[Segment]],
        output_modality: str = "free",
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """One list of segments, or a batch of such lists, to left-padded prompts.

        A segment is `("text", str)` or `("speech", units)`, or `("speech", SpeechStreams)` for a model with pitch or
        style. A few-shot prompt is simply a longer list of segments.

        Args:
            conversations: one list of segments, or a list of them.
            output_modality (`str`, default "free"): what `generate` will be asked for; for "text" and "speech" the
                prompt is closed with that marker where its last segment is of the other modality.
            return_tensors (`str`, default "pt"): "pt" for tensors, None for lists without padding.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` of shape `(batch, length)`.

        Raises `ValueError` for an empty prompt or segment, an unknown modality, a unit out of range, a stream that is
        missing, a unit token or marker typed in a text, or a prompt as long as the context or longer.
        """
        if len(conversations) == 0:
            raise ValueError("the prompt is empty; give at least one segment, ('text', str) or ('speech', units)")
        is_batch = not isinstance(conversations[0][0] if len(conversations[0]) else (), str)
        batch = conversations if is_batch else [conversations]
        rows = [self._conversation_to_ids(conversation, output_modality) for conversation in batch]
        if return_tensors is None:
            return BatchFeature({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
        length = max(map(len, rows))
        input_ids = torch.full((len(rows), length), self.config.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for index, row in enumerate(rows):
            input_ids[index, length - len(row) :] = torch.tensor(row)
            attention_mask[index, length - len(row) :] = 1
        return BatchFeature({"input_ids": input_ids, "attention_mask": attention_mask}, tensor_type=return_tensors)

    def ids_to_segments(self, ids: Sequence[int]) -> list[Segment]:
        """Ids `(length,)` of one row -> text and speech segments; see `tokenization_tinywave.ids_to_segments`."""
        return ids_to_segments(ids, self.config, self.tokenizer)

    def _conversation_to_ids(self, segments: Sequence[Segment], output_modality: str) -> list[int]:
        """Segments of one prompt -> ids, with BOS and without EOS."""
        if len(segments) == 0:
            raise ValueError("a prompt is empty; give at least one segment, ('text', str) or ('speech', units)")
        ids = segments_to_ids(segments, self.config, self.tokenizer)
        if output_modality != "free" and segments[-1][0] != output_modality:
            ids.append(marker_of_modality(output_modality, self.config))
        if len(ids) >= self.config.max_position_embeddings:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, which fills the context of {self.config.max_position_embeddings}; "
                "give fewer or shorter segments"
            )
        return ids


# Saving the processor copies this file and the siblings it imports.
TinyWaveProcessor.register_for_auto_class("AutoProcessor")
