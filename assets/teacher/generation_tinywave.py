"""Generation in a chosen modality: a mask over id ranges, prompts checked before the first step, ids one by one.

Letters in shapes: B rows, T tokens so far, V vocabulary.
"""

import queue
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation import BaseStreamer

from .configuration_tinywave import TinyWaveConfig
from .parallel_heads_tinywave import generate_with_heads
from .tokenization_tinywave import meaningful_ids

OUTPUT_MODALITIES = ("free", "text", "speech")


class ModalityLogitsProcessor(LogitsProcessor):
    """Allow only the ids of the output modality, and EOS; BOS, padding and filler are never allowed.

    - "text": text ids.
    - "speech": units, pitch and style ids.
    - "free": the ids of the modality that the last marker in the row opened, or the other marker. A row without a
      marker may continue with anything.

    Args:
        config (`TinyWaveConfig`): the id layout.
        output_modality (`str`): "free", "text" or "speech".

    Raises `ValueError` for another output modality.
    """

    def __init__(self, config: TinyWaveConfig, output_modality: str):
        if output_modality not in OUTPUT_MODALITIES:
            raise ValueError(f"unknown output_modality {output_modality!r}; choose one of {OUTPUT_MODALITIES}")
        self.output_modality = output_modality
        self.text_marker_id = config.text_marker_id
        self.speech_marker_id = config.speech_marker_id
        text, speech = torch.zeros(2, config.vocab_size, dtype=torch.bool)
        for name, owned in config.stream_ranges().items():
            (text if name == "text" else speech)[owned.start : owned.stop] = True
        in_text, in_speech = text.clone(), speech.clone()
        in_text[config.speech_marker_id] = True
        in_speech[config.text_marker_id] = True
        # Row 0: no marker yet; row 1: after [Text]; row 2: after [Speech].
        self.allowed = {
            "text": text[None],
            "speech": speech[None],
            "free": torch.stack([in_text | in_speech, in_text, in_speech]),
        }[output_modality]
        self.allowed[:, [config.bos_token_id, config.pad_token_id]] = False
        self.allowed[:, config.eos_token_ids] = True

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Ids `(B, T)`, scores `(B, V)` -> scores `(B, V)` with -inf at every id that is not allowed."""
        if self.allowed.device != scores.device:
            self.allowed = self.allowed.to(scores.device)
        allowed = self.allowed
        if self.output_modality == "free":
            allowed = allowed[self._open_modality(input_ids)]
        return scores.masked_fill(~allowed, -torch.inf)

    def _open_modality(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        """Ids `(B, T)` -> `(B,)`: 0 without a marker, 1 where the last marker is [Text], 2 where it is [Speech]."""
        positions = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        start = input_ids.new_zeros(len(input_ids), 1)
        last_text, last_speech = (
            torch.cat([start, positions * (input_ids == marker)], dim=1).amax(dim=1)
            for marker in (self.text_marker_id, self.speech_marker_id)
        )
        return (last_text > last_speech).long() + 2 * (last_speech > last_text).long()


class ModalityGenerationMixin(GenerationMixin):
    """`generate` with an output modality; for a model whose configuration is a `TinyWaveConfig`."""

    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        *args,
        output_modality: str = "free",
        logits_processor: LogitsProcessorList | None = None,
        parallel_heads: bool = False,
        verify_drafts: bool = True,
        **kwargs,
    ):
        """Continue a batch of prompts.

        Args:
            inputs (`torch.LongTensor` of shape `(batch, length)`): token ids, padded left; also as `input_ids=`.
            output_modality (`str`, default "free"): "text", "speech", or "free" for either, with markers between. For
                "text" and "speech" the prompt should end inside that modality, which the processor's argument of the
                same name sees to.
            logits_processor (`LogitsProcessorList`, *optional*): further processors, applied before the modality mask.
            parallel_heads (`bool`, default False): whether the model's parallel heads draft several tokens for each
                forward pass; for one prompt, without beam search.
            verify_drafts (`bool`, default True): with parallel heads, whether drafts are kept only as far as ordinary
                decoding would say them: greedily the ids are the same, sampled they have the same distribution. False
                keeps every draft, which is faster and worse.

        The other arguments and the result are those of `transformers.GenerationMixin.generate`, which by default adds
        20 tokens: set `max_new_tokens`.

        Raises `ValueError` for an unknown modality, and for a prompt that is empty, padded right, holds ids with no
        meaning, or leaves no room in the context.
        """
        mask = ModalityLogitsProcessor(self.config, output_modality)
        prompt = kwargs.get("input_ids") if inputs is None else inputs
        if prompt is not None:
            generation_config = (
                kwargs.get("generation_config") or (args[0] if args else None) or self.generation_config
            )
            max_new_tokens = kwargs.get("max_new_tokens", generation_config.max_new_tokens)
            check_prompt(prompt, kwargs.get("attention_mask"), self.config, max_new_tokens or 1)
        if parallel_heads:
            kwargs["custom_generate"] = partial(
                generate_with_heads, verify_drafts=verify_drafts, streamer=kwargs.get("streamer")
            )
        return super().generate(
            inputs, *args, logits_processor=LogitsProcessorList([*(logits_processor or ()), mask]), **kwargs
        )


def check_prompt(
    input_ids: torch.LongTensor, attention_mask: torch.Tensor | None, config: TinyWaveConfig, max_new_tokens: int
) -> None:
    """Raise `ValueError` where a prompt of shape `(B, T)` cannot be continued by `max_new_tokens` tokens."""
    if input_ids.ndim != 2 or input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"the prompt has shape {tuple(input_ids.shape)} and dtype {input_ids.dtype}; expected integer token ids "
            "of shape (batch, length)"
        )
    if attention_mask is None:
        attention_mask = input_ids != config.pad_token_id
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"the attention mask has shape {tuple(attention_mask.shape)}, the prompt {tuple(input_ids.shape)}"
        )
    kept = attention_mask.bool()
    if input_ids.numel() == 0 or not kept.any(dim=1).all():
        raise ValueError("a prompt is empty; give each row at least the BOS token")
    if not kept[:, -1].all() or (kept[:, :-1] & ~kept[:, 1:]).any():
        raise ValueError("a prompt has padding after its first token; pad on the left (padding_side='left')")
    if input_ids.shape[1] + max_new_tokens > config.max_position_embeddings:
        raise ValueError(
            f"the prompt of {input_ids.shape[1]} tokens and {max_new_tokens} new ones exceed the context of "
            f"{config.max_position_embeddings} tokens; shorten the prompt or lower max_new_tokens"
        )
    known = torch.from_numpy(meaningful_ids(config)).to(input_ids.device)
    outside = (input_ids < 0) | (input_ids >= config.vocab_size)
    wrong = input_ids[kept & (outside | ~known[input_ids.masked_fill(outside, 0)])]
    if len(wrong):
        raise ValueError(
            f"the prompt holds id {wrong[0].item()}, which has no meaning for this model: it is filler or outside the "
            f"vocabulary 0..{config.vocab_size - 1}; was the prompt made with another model's processor?"
        )


class StreamClosed(Exception):
    """Ends `generate` when nobody reads its ids any more."""


class IdStreamer(BaseStreamer):
    """Passes the new ids of one row from the thread that generates to the one that reads.

    `events` receives an id (`int`) for each token, then None at the end, or the exception that ended it.
    """

    def __init__(self):
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.is_closed = False
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt `(B, T)`, then the new ids `(B,)` of each step."""
        if self.is_closed:
            raise StreamClosed
        if len(value) != 1:
            raise ValueError(f"found {len(value)} rows; a stream gives one continuation of one prompt")
        if not self._is_prompt:
            for index in value.flatten().tolist():
                self.events.put(index)
        self._is_prompt = False

    def end(self) -> None:
        """Nothing: the end is told when `generate` has returned."""


def stream_ids(model: PreTrainedModel, **generation_options: Any) -> Iterator[int]:
    """Yield the new ids of one prompt while `model.generate` still runs, in a thread of its own.

    The ids are those that `generate` returns, EOS included. Closing the iterator ends the generation after the step
    that it is in, and returns when its thread has ended.

    Args:
        generation_options: of `model.generate`, with `input_ids` of shape `(1, length)`. No beam search.

    Raises what `generate` raises, and `ValueError` for more than one row.
    """
    streamer = IdStreamer()

    def generate() -> None:
        try:
            model.generate(**generation_options, streamer=streamer)
        except StreamClosed:
            pass
        except BaseException as error:
            streamer.events.put(error)
        streamer.events.put(None)

    thread = threading.Thread(target=generate, name="generate")
    thread.start()
    try:
        while (event := streamer.events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        streamer.is_closed = True
        thread.join()
