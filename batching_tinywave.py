"""Many prompts continued at once, each as if it were alone: where a row of the batch ends, the next prompt begins.

A forward pass over several rows reads the weights once. In a padded batch all rows wait for the longest; here a row
that has ended is given to the next prompt at once, while the others go on (continuous batching: Yu et al. 2022, Orca,
"iteration-level scheduling", https://www.usenix.org/conference/osdi22/presentation/yu).

Shapes: B rows in use, R rows at most, H key-value heads, L longest row, D head size, V vocabulary.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from transformers import Cache, DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation import GenerationMode, StoppingCriteriaList

Name = int | str

# Positions for which memory is taken at once, so that a slightly longer prompt does not move all rows.
_LENGTH_STEP = 128
# For one prompt at a time, or for a loop that keeps a cache of its own.
_REFUSED = ("parallel_heads", "streamer", "past_key_values", "assistant_model")


class Prompt(NamedTuple):
    """A prompt that waits to be continued.

    Attributes:
        name (`int` or `str`): tells the prompts apart; with the seed it decides what is drawn.
        input_ids (`torch.LongTensor` of shape `(length,)` or `(1, length)`): its ids, without padding.
        options (`dict`): generation options of this prompt alone, such as `max_new_tokens`.
    """

    name: Name
    input_ids: torch.LongTensor
    options: Mapping[str, Any] = {}


def prompt_seed(seed: int, name: Name) -> int:
    """The seed, 32 bits, of the prompt `name`: `torch.manual_seed` of it lets `generate` draw the same alone."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name!r}".encode()).digest()[:4])


@torch.no_grad()
def continue_many(
    model: PreTrainedModel,
    prompts: Iterable[Prompt],
    batch_size: int = 8,
    seed: int = 0,
    **generation_options: Any,
) -> Iterator[tuple[Name, torch.LongTensor]]:
    """Continue many prompts and yield what follows each as soon as it has ended.

    A prompt is taken from `prompts` only when a row is free. Its continuation is that of `model.generate` for it
    alone: the likeliest ids, or, sampled, those after `torch.manual_seed(prompt_seed(seed, name))`. So it depends
    neither on the other prompts nor on `batch_size`. Equal means equal up to the rounding of logits, which in matrix
    products differs with the number of rows; in float32 that seldom shows.

    Args:
        model: any causal language model of transformers whose layers all attend to everything before.
        prompts (iterable of [`Prompt`]): as many as there are.
        batch_size (`int`, default 8): prompts that are continued at once.
        seed (`int`, default 0): of all prompts.
        generation_options: of `model.generate`, such as `output_modality`, `max_new_tokens` and `do_sample`; those of
            a prompt go first. Processors and criteria are called with one prompt at a time, `(1, length)`.

    Yields:
        The name of a prompt, and its new ids `(new,)`, EOS included where it ends the row.

    Raises `ValueError` for a `batch_size` below 1, two prompts of one name, beam search and whatever else makes more
    of a prompt than one row of ids, and what `generate` refuses. What has ended before has been yielded.
    """
    if batch_size < 1:
        raise ValueError(f"found batch_size={batch_size}; expected at least one row")
    waiting, names, rows, cache = iter(prompts), set(), [], RowCache(batch_size)
    while True:
        while len(rows) < batch_size and (prompt := next(waiting, None)) is not None:
            if prompt.name in names:
                raise ValueError(f"found two prompts named {prompt.name!r}; the name decides what a prompt draws")
            names.add(prompt.name)
            row = _Row(model, prompt, seed, generation_options)
            if row.say(_read_prompt(model, row, cache)):
                cache.drop(len(rows))
                yield prompt.name, row.new_ids
            else:
                rows.append(row)
        if not rows:
            return
        logits = _read_last(model, rows, cache)
        ended = [place for place, row in enumerate(rows) if row.say(logits[place, None])]
        finished = [rows[place] for place in ended]
        for place in reversed(ended):
            # The last row moves into the gap, so that the rows in use are always the first.
            cache.drop(place)
            rows[place] = rows[-1]
            rows.pop()
        for row in finished:
            yield row.name, row.new_ids


def _read_prompt(model: PreTrainedModel, row: "_Row", cache: "RowCache") -> torch.Tensor:
    """Put a prompt into the cache, behind the rows in use -> logits `(1, V)` of what follows it."""
    read = DynamicCache(config=model.config)
    output = model(input_ids=row.ids, past_key_values=read, use_cache=True, logits_to_keep=1)
    cache.append(read, row.max_length)
    return output.logits[:, -1].float()


def _read_last(model: PreTrainedModel, rows: list["_Row"], cache: "RowCache") -> torch.Tensor:
    """Read the last id of every row -> logits `(B, V)` of what follows."""
    last_ids = torch.cat([row.ids[:, -1:] for row in rows])
    positions = cache.begin_step()
    output = model(
        input_ids=last_ids,
        attention_mask=torch.arange(cache.longest, device=positions.device) <= positions[:, None],
        position_ids=positions[:, None],
        past_key_values=cache,
        use_cache=True,
    )
    return output.logits[:, -1].float()


class _Plan(NamedTuple):
    """What `generate` makes of its options for one prompt."""

    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    generation_config: GenerationConfig


def _plan(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs) -> _Plan:
    """In the place of the decoding loop of `generate`: hands back what that would work with."""
    return _Plan(logits_processor, stopping_criteria, generation_config)


class _Row:
    """A prompt that is being continued."""

    def __init__(self, model: PreTrainedModel, prompt: Prompt, seed: int, options: Mapping[str, Any]):
        options = {**options, **prompt.options}
        if used := [name for name in _REFUSED if options.get(name)]:
            raise ValueError(f"found {used[0]}, which rows of a batch do not support; leave it out, or use `generate`")
        input_ids = prompt.input_ids.reshape(1, -1).to(model.device)
        # `generate` itself checks the prompt and prepares processors and criteria, and stops where it would decode.
        self.processors, self.criteria, config = model.generate(
            input_ids=input_ids, attention_mask=torch.ones_like(input_ids), custom_generate=_plan, **options
        )
        mode = config.get_generation_mode()
        if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE) or config.num_return_sequences > 1:
            raise ValueError(
                f"found {mode.value} and num_return_sequences={config.num_return_sequences}; a row of a batch is one "
                "continuation, greedy or sampled; use `generate` for others"
            )
        self.name, self.do_sample = prompt.name, config.do_sample
        self.max_length, self._num_prompt = self.criteria.max_length, input_ids.shape[1]
        self._written = torch.nn.functional.pad(input_ids, (0, self.max_length - self._num_prompt))
        self._length = self._num_prompt
        self._generator = torch.Generator(model.device).manual_seed(prompt_seed(seed, prompt.name))

    @property
    def ids(self) -> torch.LongTensor:
        """The prompt and what has been said so far, `(1, length)`."""
        return self._written[:, : self._length]

    @property
    def new_ids(self) -> torch.LongTensor:
        """What has been said so far, `(new,)`."""
        return self._written[0, self._num_prompt : self._length].clone()

    def say(self, scores: torch.Tensor) -> bool:
        """Add the token that logits `(1, V)` give; whether the row has ended with it."""
        # Called one by one: the list would inspect the signature of each anew at every token.
        for processor in self.processors:
            scores = processor(self.ids, scores)
        if self.do_sample:
            token = torch.multinomial(scores.softmax(-1), 1, generator=self._generator)
        else:
            token = scores.argmax(-1, keepdim=True)
        self._written[:, self._length, None] = token
        self._length += 1
        return bool(self.criteria(self.ids, None))


class RowCache(Cache):
    """Keys and values of rows of different lengths, each from position 0 on, written in place.

    Memory `(R, H, length, D)` for each layer is taken for the longest row so far. The rows in use are always the
    first, and attention is given only as many positions as the longest of them has.

    Args:
        max_rows (`int`): R.
    """

    def __init__(self, max_rows: int):
        super().__init__(layers=[])
        self.max_rows, self.lengths = max_rows, []
        self._stored: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._places = self._positions = None

    @property
    def longest(self) -> int:
        """Positions that attention sees in the current step, L."""
        return max(self.lengths, default=0)

    def append(self, read: DynamicCache, max_length: int) -> None:
        """Begin a row with the keys and values `(1, H, length, D)` of its prompt, that may grow to `max_length`."""
        place, length = len(self.lengths), read.get_seq_length()
        if not self._stored:
            self._stored = [
                tuple(state.new_zeros(self.max_rows, state.shape[1], 0, state.shape[3]) for state in (keys, values))
                for keys, values in ((layer.keys, layer.values) for layer in read.layers)
            ]
        self._grow(max_length)
        for stored, layer in zip(self._stored, read.layers, strict=True):
            for whole, state in zip(stored, (layer.keys, layer.values), strict=True):
                whole[place, :, :length] = state[0]
        self.lengths.append(length)

    def drop(self, place: int) -> None:
        """End a row; the last one in use moves to its place."""
        length = self.lengths.pop()
        last = len(self.lengths)
        if place != last:
            for whole in (state for stored in self._stored for state in stored):
                whole[place, :, :length] = whole[last, :, :length]
            self.lengths[place] = length

    def begin_step(self) -> torch.LongTensor:
        """Make room for one more token in every row; the positions `(B,)` of these tokens."""
        device = self._stored[0][0].device
        self._places = torch.arange(len(self.lengths), device=device)
        self._positions = torch.tensor(self.lengths, device=device)
        self.lengths = [length + 1 for length in self.lengths]
        return self._positions

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values `(B, H, 1, D)` of a step; those of all positions `(B, H, L, D)`."""
        keys, values = self._stored[layer_idx]
        keys[self._places, :, self._positions] = key_states[:, :, 0]
        values[self._places, :, self._positions] = value_states[:, :, 0]
        num_rows, longest = len(self.lengths), self.longest
        return keys[:num_rows, :, :longest], values[:num_rows, :, :longest]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions before the current step, of the longest row."""
        return self.longest - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Positions that attention sees, and where they begin."""
        return self.longest, 0

    def _grow(self, max_length: int) -> None:
        """Take memory for rows of `max_length` positions, where there is less."""
        missing = max_length - self._stored[0][0].shape[2]
        if missing > 0:
            more = -(-missing // _LENGTH_STEP) * _LENGTH_STEP
            self._stored = [
                tuple(
                    torch.cat([state, state.new_zeros(*state.shape[:2], more, state.shape[3])], dim=2)
                    for state in stored
                )
                for stored in self._stored
            ]
