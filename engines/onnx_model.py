"""A language model in an ONNX file, which generates as one in PyTorch does; computed by ONNX Runtime on the CPU.

Letters in shapes: B rows, T tokens, V vocabulary.
"""

import json
import os
import threading
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..configuration_tinywave import TinyWaveConfig
from ..data.storage import file_sha256
from ..generation_tinywave import ModalityGenerationMixin
from ..loading_tinywave import CheckpointError, check_model_type
from .in_place_cache import make_room

MODEL_FILE, DATA_FILE, RECORD_FILE = "model.onnx", "model.onnx.data", "engine.json"
# Of the graph's inputs and outputs and of the record; another version is not read.
FORMAT_VERSION = 2


class OnnxForCausalLM(ModalityGenerationMixin, PreTrainedModel):
    """What `tinywave export --engine onnx` wrote: token ids `(B, T)` -> logits `(B, T, V)`, on the CPU in float32.

    Takes the place of a [`TinyWaveForCausalLM`] in a pipeline and in scoring; `generate` takes the same arguments, but
    for `parallel_heads`. It cannot be trained, moved or saved: copy its folder. Make it with
    [`~OnnxForCausalLM.from_pretrained`].

    `record` is the folder's engine.json: "weights", "bits", "head_bits", "block_size", "num_parameters", and
    "linear_bytes", the bytes of the linear layers, scales included.
    """

    config_class = TinyWaveConfig
    main_input_name = "input_ids"

    def __init__(self, config: TinyWaveConfig, session, record: dict):
        super().__init__(config)
        # No attention of transformers: it takes masks of padding alone.
        self.config._attn_implementation = "onnx"
        self.session, self.record, self._last = session, record, threading.local()
        # The weights are the session's; a model tells its device and type by a parameter.
        self.placeholder = nn.Parameter(torch.empty(0), requires_grad=False)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "OnnxForCausalLM":
        """Load an exported folder; it computes with as many threads as PyTorch does at that moment.

        Raises:
            ValueError: an export of another version, or by another program.
            ModuleNotFoundError: without the package onnxruntime.
        """
        record = read_record(folder)
        check_model_type(folder, cls)
        _check_weights(Path(folder), record)
        model = cls(TinyWaveConfig.from_pretrained(folder), _open_session(Path(folder) / MODEL_FILE), record)
        model.generation_config = GenerationConfig.from_pretrained(folder)
        return model.eval()

    def generate(self, inputs: torch.LongTensor | None = None, *args, parallel_heads: bool = False, **kwargs):
        """As `TinyWaveForCausalLM.generate`. Raises `ValueError` for `parallel_heads` as well."""
        if parallel_heads:
            raise ValueError(
                "found parallel_heads with an ONNX model, which has none; leave it out, or take the folder in PyTorch"
            )
        return super().generate(inputs, *args, **kwargs)

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = True,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """Logits of tokens, and the cache of all so far.

        The attention operator wants each row from the left. So rows that are padded on the left are moved before they
        are read, and their logits are moved back: they are those of each row alone.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, T)`): tokens after those in the cache; several at once after
                a cache of one row only, which is what the operator can do.
            attention_mask (`torch.Tensor` of shape `(B, tokens in the cache + T)`): 0 on padding, left or right of a
                row's tokens.
            position_ids (`torch.LongTensor` of shape `(B, T)`): as they follow from the mask; no others.
            past_key_values ([`Cache`], *optional*): of an earlier pass; it is extended in place.
            use_cache (`bool`, default True): whether the cache is returned.
            logits_to_keep (`int` or `torch.Tensor`, default 0): how many of the last logits, or which; 0 means all.

        Returns:
            `logits`, float32 `(B, kept, V)`, of no meaning on padding; `past_key_values`, a [`DynamicCache`] where
            none was given.

        Raises `ValueError` for a mask, positions, a length or a cache that the graph cannot take.
        """
        (num_rows, num_tokens), config = input_ids.shape, self.config
        cache = DynamicCache(config=config) if past_key_values is None else past_key_values
        starts, lengths, known = _rows_of(attention_mask, num_rows, num_tokens, cache.get_seq_length())
        if (longest := int((known + lengths).max())) > config.max_position_embeddings:
            raise ValueError(f"found {longest} tokens; the graph knows {config.max_position_embeddings} positions")
        _check_positions(position_ids, starts, lengths, known)
        places = _kept_columns(logits_to_keep, num_tokens) - starts[:, None]
        first = max(0, int(places.min()))
        in_row = torch.arange(int(lengths.max()))
        packed = input_ids.cpu().gather(1, (starts[:, None] + in_row).clamp(max=num_tokens - 1))
        sizes = config.num_key_value_heads, config.head_dim
        states = make_room(cache, config.num_hidden_layers, num_rows, len(in_row), sizes)
        logits = self._run(packed, known + lengths, states, first)
        places = (places - first).clamp(0, logits.shape[1] - 1)
        if num_rows > 1 or places.shape[1] != logits.shape[1]:
            logits = logits[torch.arange(num_rows)[:, None], places]
        return CausalLMOutputWithPast(
            logits=logits.to(input_ids.device), past_key_values=None if use_cache is False else cache
        )

    def _run(
        self, ids: torch.LongTensor, totals: torch.LongTensor, states: list[torch.Tensor], first: int
    ) -> torch.Tensor:
        """Logits from token `first` on.

        Args:
            ids: new tokens `(B, T)`, each row from the left.
            totals: of each row `(B,)`, with those that are known.
            states: keys and values of each layer in turn, with room for all.
        """
        binding = self._bind_states(states)
        inputs = {
            "input_ids": ids.contiguous(),
            "attention_mask": (torch.arange(int(totals.max())) < totals[:, None]).long(),
            "logits_start": torch.tensor([first]),
        }
        for name, tensor in inputs.items():
            _bind(binding.bind_input, name, tensor)
        logits = torch.empty(len(ids), ids.shape[1] - first, self.config.vocab_size)
        _bind(binding.bind_output, "logits", logits)
        self.session.run_with_iobinding(binding)
        return logits

    def _bind_states(self, states: list[torch.Tensor]):
        """A binding of the session to keys and values; that of the last step of this thread where they stayed."""
        places = [(state.data_ptr(), state.shape) for state in states]
        if getattr(self._last, "places", None) != places:
            binding = self.session.io_binding()
            # One buffer is both past and present, so that a token is added and nothing is copied.
            for index, state in enumerate(states):
                name = f"{index // 2}.{'value' if index % 2 else 'key'}"
                _bind(binding.bind_input, f"past_key_values.{name}", state)
                _bind(binding.bind_output, f"present.{name}", state)
            self._last.places, self._last.binding = places, binding
        return self._last.binding

    def num_parameters(self, *args, **kwargs) -> int:
        """Weights of the model that was exported."""
        return self.record["num_parameters"]

    def save_pretrained(self, *args, **kwargs):
        raise ValueError("an ONNX model is not saved again; copy its folder, or export the model it was made from")

    def _apply(self, fn, recurse=True):
        # It stays on the CPU in float32, and takes ids from anywhere.
        return self


def read_record(folder: str | os.PathLike) -> dict:
    """The record of an exported folder. Raises `ValueError` where this version did not write it."""
    path = Path(folder) / RECORD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        found = f"{RECORD_FILE} of format {version}" if path.is_file() else f"no {RECORD_FILE}"
        raise CheckpointError(
            f"found {found} in {folder}; expected format {FORMAT_VERSION}. Export the model again with "
            "`tinywave export MODEL FOLDER --engine onnx`"
        )
    return record


def _check_weights(folder: Path, record: dict) -> None:
    """Refuse files that are not those of the export: their digests are in its record."""
    digests = record.get("sha256")
    for name in (MODEL_FILE, DATA_FILE):
        expected = digests.get(name) if isinstance(digests, dict) else None
        if file_sha256(folder / name) != expected:
            raise CheckpointError(f"{folder / name} is missing or damaged (SHA-256); export the model again")


def is_onnx_folder(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a model in ONNX."""
    return (Path(folder) / MODEL_FILE).is_file()


def _open_session(path: Path):
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a model in ONNX needs the package onnxruntime: pip install 'tinywave[export]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    # Threads that spin while they wait take the cores of vocoder and encoder, and time where cores are shared.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # Damaged files raise classes of onnxruntime that have no common base.
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} cannot be loaded: {reason}") from error


def _rows_of(
    attention_mask: torch.Tensor | None, num_rows: int, num_tokens: int, num_cached: int
) -> tuple[torch.LongTensor, torch.LongTensor, torch.LongTensor]:
    """Where the new tokens of each row start, how many they are, and how many are known before, each `(B,)`."""
    zeros = torch.zeros(num_rows, dtype=torch.long)
    if num_rows > 1 and num_tokens > 1 and num_cached:
        raise ValueError(
            f"found {num_tokens} new tokens for each of {num_rows} rows in a cache; the attention operator reads one "
            "at a time there. Give one row, or start without a cache"
        )
    if attention_mask is None:
        return zeros, zeros + num_tokens, zeros + num_cached
    expected = (num_rows, num_cached + num_tokens)
    if attention_mask.ndim != 2 or len(attention_mask) != num_rows:
        raise ValueError(
            f"found a mask of shape {tuple(attention_mask.shape)}; expected one of padding, of shape {expected}"
        )
    kept = attention_mask.bool().cpu()
    totals, starts = kept.sum(1), kept.long().argmax(1)
    in_row = torch.arange(kept.shape[1]) - starts[:, None]
    if not totals.all() or not torch.equal(kept, (in_row >= 0) & (in_row < totals[:, None])):
        raise ValueError("found a mask with an empty row or a gap; expected the tokens of a row side by side")
    if num_cached == 0 and kept.shape == expected:
        return starts, totals, zeros
    if num_cached == 0 or int(totals.max()) != num_cached + num_tokens:
        raise ValueError(
            f"found a mask of shape {tuple(kept.shape)} with at most {int(totals.max())} tokens in a row, "
            f"{num_cached} tokens in the cache and {num_tokens} new ones; expected a mask of shape {expected}"
        )
    return zeros, zeros + num_tokens, totals - num_tokens


def _check_positions(
    position_ids: torch.LongTensor | None, starts: torch.LongTensor, lengths: torch.LongTensor, known: torch.LongTensor
) -> None:
    """Raise `ValueError` for other positions `(B, T)` than those that the attention operator counts itself."""
    if position_ids is None:
        return
    in_row = torch.arange(position_ids.shape[1]) - starts[:, None]
    is_token = (in_row >= 0) & (in_row < lengths[:, None])
    if (is_token & (position_ids.cpu() != in_row + known[:, None])).any():
        raise ValueError("found position_ids that do not count the tokens of each row; leave them out")


def _kept_columns(logits_to_keep: int | torch.Tensor, num_tokens: int) -> torch.LongTensor:
    """Which of the tokens' logits are returned."""
    columns = torch.arange(num_tokens)
    return columns[-logits_to_keep:] if isinstance(logits_to_keep, int) else columns[logits_to_keep.cpu()]


def _bind(bind, name: str, tensor: torch.Tensor) -> None:
    kind = np.float32 if tensor.dtype == torch.float32 else np.int64
    bind(name, "cpu", 0, kind, list(tensor.shape), tensor.data_ptr())
