"""Keys and values of earlier prompts: a conversation that goes on is read only from where it is new.

Every turn of a conversation repeats all turns before it, and a decoder reads them all again. What it computes for a
token depends on the tokens before it alone, so that the keys and values of a common beginning are the same, up to the
rounding of products of other sizes.
"""

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from .generation_tinywave import stream_ids


@dataclass(frozen=True, eq=False)
class _Entry:
    """Ids `(length,)` on the CPU, and keys and values `(1, heads, length, head_dim)` of each layer; never changed."""

    input_ids: torch.LongTensor
    layers: list[tuple[torch.Tensor, torch.Tensor]]

    def __len__(self) -> int:
        return len(self.input_ids)

    def num_common(self, input_ids: torch.LongTensor) -> int:
        """How many ids at the beginning are those of `(length,)`."""
        length = min(len(self), len(input_ids))
        return int((self.input_ids[:length] == input_ids[:length]).cumprod(0).sum())


class PromptCache:
    """What a model has computed for earlier prompts and its answers to them, to be used where a prompt begins alike.

    Every generation works on a copy of its own of what it takes, so that any number of threads may generate at once,
    and one that is cancelled or fails leaves what was kept as it was. For one prompt at a time; batches, beams and
    several sequences of a prompt are generated without it.

    A token takes `2 * num_hidden_layers * num_key_value_heads * head_dim` numbers: 17 kB for the shipped teacher in
    float32, 0.3 MB for a Llama of two billion parameters in bfloat16.

    Args:
        max_tokens (`int`): kept over all prompts; beyond it, those that were said longest ago are forgotten.

    What is kept belongs to the weights of one model: call [`~PromptCache.clear`] when they have changed or moved,
    while nothing is generated. Raises `ValueError` for `max_tokens` below 1, and for a second model.
    """

    def __init__(self, max_tokens: int):
        if max_tokens < 1:
            raise ValueError(f"found max_tokens={max_tokens}; expected at least 1, or no prompt cache at all")
        self.max_tokens = max_tokens
        self._entries: list[_Entry] = []  # in the order in which they were last kept
        self._lock = threading.Lock()
        self._model = None

    def __len__(self) -> int:
        """Tokens that are kept."""
        with self._lock:
            return sum(map(len, self._entries))

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries, self._model = [], None

    def generate(self, model: PreTrainedModel, **generation_options: Any) -> torch.LongTensor:
        """`model.generate`, reading only what is new of the one prompt `input_ids` `(1, length)`."""
        if not _is_one_row(model, generation_options):
            return model.generate(**generation_options)
        cache = self._begin(model, generation_options["input_ids"])
        ids = model.generate(**generation_options, past_key_values=cache)
        self._keep(ids, cache)
        return ids

    def stream_ids(self, model: PreTrainedModel, **generation_options: Any) -> Iterator[int]:
        """`stream_ids` of `generation_tinywave`, reading only what is new of the prompt.

        Closed early, it keeps the prompt without what was said after it.
        """
        if not _is_one_row(model, generation_options):
            yield from stream_ids(model, **generation_options)
            return
        prompt = generation_options["input_ids"]
        cache = self._begin(model, prompt)
        new_ids: list[int] = []
        try:
            with closing(stream_ids(model, **generation_options, past_key_values=cache)) as ids:
                for index in ids:
                    new_ids.append(index)
                    yield index
        except GeneratorExit:
            self._keep(prompt, cache)
            raise
        self._keep(torch.cat([prompt, prompt.new_tensor([new_ids])], dim=1), cache)

    def _begin(self, model: PreTrainedModel, prompt: torch.LongTensor) -> DynamicCache:
        """A cache of the longest beginning of a prompt `(1, length)` that is known, but for its last id."""
        ids = prompt[0, :-1].cpu()
        with self._lock:
            self._model = model if self._model is None else self._model
            if self._model is not model:
                raise ValueError("found a prompt cache that another model uses; give each model one of its own")
            common = [entry.num_common(ids) for entry in self._entries]
            length = max(common, default=0)
            layers = self._entries[common.index(length)].layers if length else []
        cache = DynamicCache(config=model.config)
        for layer_idx, (keys, values) in enumerate(layers):
            # It joins them to what it has, which is nothing, and so copies them.
            cache.update(keys[:, :, :length], values[:, :, :length], layer_idx)
        return cache

    def _keep(self, ids: torch.LongTensor, cache: DynamicCache) -> None:
        """Keep what a cache holds of ids `(1, length)`, in the place of entries that are its beginning."""
        # One that was closed early holds more than the prompt; the id that was said last has not been read.
        length = min(self.max_tokens, ids.shape[1], cache.get_seq_length())
        kept = ids[0, :length].cpu()
        layers = [(layer.keys[:, :, :length], layer.values[:, :, :length]) for layer in cache.layers]
        layers = [(keys.contiguous(), values.contiguous()) for keys, values in layers]
        with self._lock:
            common = [entry.num_common(kept) for entry in self._entries]
            whole = self._entries[common.index(length)] if length in common else _Entry(kept, layers)
            others = [entry for entry, num in zip(self._entries, common, strict=True) if num < len(entry)]
            self._entries = [*(entry for entry in others if entry is not whole), whole]
            while sum(map(len, self._entries)) > self.max_tokens:
                self._entries.pop(0)


def _is_one_row(model: PreTrainedModel, options: dict[str, Any]) -> bool:
    """Whether these options of `generate` make one row of ids from one prompt, with a cache as by default."""
    config = options.get("generation_config") or model.generation_config
    mask = options.get("attention_mask")

    def chosen(name: str) -> Any:
        return options.get(name, getattr(config, name, None))

    return (
        len(options["input_ids"]) == 1
        and (mask is None or bool(mask.all()))
        and all((chosen(name) or 1) == 1 for name in ("num_beams", "num_return_sequences"))
        and all(chosen(name) is None for name in ("past_key_values", "cache_implementation"))
        and chosen("use_cache") is not False
        and not chosen("return_dict_in_generate")
    )
