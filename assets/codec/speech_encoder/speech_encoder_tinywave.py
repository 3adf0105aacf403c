"""Waveform -> phonetic units: a layer of a speech transformer, averaged frames, and a quantizer.

The backbone is the beginning of Whisper or of HuBERT (`speech_backbones_tinywave.py`), the quantizer the nearest
centroid or a small network with a blank (`speech_quantizers_tinywave.py`). The units of an utterance do not depend on
what else is in the batch, and with a limited attention window they can be computed while it is still being spoken.

Shapes: B batch, S samples, T backbone frames, U units, D backbone width, K number of units.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_tinywave import SpeechEncoderConfig
from .quantization_tinywave import round_weights, unround_weights
from .speech_backbones_tinywave import build_backbone
from .speech_quantizers_tinywave import build_quantizer, replace_blanks

QUANTIZER_FILE = "quantizer.safetensors"
MIN_SECONDS = 0.08


@dataclass
class SpeechEncoderOutput(ModelOutput):
    """Output of [`SpeechEncoder`].

    Args:
        units (`torch.LongTensor` of shape `(batch, units)`): unit ids `0 .. num_units - 1`, -1 where padded.
        lengths (`torch.LongTensor` of shape `(batch,)`): units of each utterance.
        features (`torch.FloatTensor` of shape `(batch, units, hidden_size)`): averaged backbone frames before
            quantization, 0 where padded.
    """

    units: torch.LongTensor | None = None
    lengths: torch.LongTensor | None = None
    features: torch.FloatTensor | None = None


@dataclass(frozen=True)
class AudioChunk:
    """A piece of an utterance that is encoded at once.

    `waveform`: samples of the piece, context included. `start`, `stop`: the units of the piece that count; the ones
    before and after are context.
    """

    waveform: torch.Tensor
    start: int
    stop: int


class SpeechEncoder(PreTrainedModel):
    """Speech -> units of 25 Hz.

    One unit covers `pooling` frames of the backbone, and unit i begins at sample `samples_per_unit * i` (640 at 16 kHz
    and 25 Hz). An utterance of S samples has `S // 640` units with Whisper and `(S - 720) // 640 + 1` with a HuBERT of
    25 Hz, whose convolutions do not pad. Repeats are kept. Audio longer than 30 s (Whisper) or 100 s (HuBERT) is cut
    into equal chunks and the units are joined; with an `attention_window` the chunks overlap by what a unit can depend
    on, so that the cuts cannot be noticed. With `block_units`, all audio is cut into blocks of so many units, each
    heard with `block_context` units on both sides.

    Silence is not an error: it has units like any sound, unless a linear quantizer finds blanks only.

    Args:
        config ([`SpeechEncoderConfig`]): `backbone_config` must describe a Whisper or HuBERT model.

    Raises `ValueError` when the backbone is another, has fewer layers than `config.layer`, another frame rate than
    `config.backbone_frame_rate`, or no room for a block and its context.
    """

    config_class = SpeechEncoderConfig
    base_model_prefix = "speech_encoder"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    _supports_sdpa = True
    _no_split_modules = ["WhisperEncoderLayer", "HubertEncoderLayer", "HubertEncoderLayerStableLayerNorm"]

    def __init__(self, config: SpeechEncoderConfig):
        super().__init__(config)
        self.backbone = build_backbone(config)
        frame_rate = config.sampling_rate / self.backbone.hop_samples
        if frame_rate != config.backbone_frame_rate:
            raise ValueError(
                f"backbone_frame_rate is {config.backbone_frame_rate:g} Hz, but this backbone makes {frame_rate:g} "
                "frames a second; set it to that, and pooling to the frames that make one unit"
            )
        block, room = (config.block_units or 0) + 2 * config.block_context, self.backbone.max_frames // config.pooling
        if block > room:
            raise ValueError(
                f"block_units and twice block_context are {block} units, but the backbone takes {room} at once"
            )
        self.quantizer = build_quantizer(config, self.backbone.hidden_size)
        if config.weight_bits:
            round_weights(self)
        self.post_init()

    @property
    def sampling_rate(self) -> int:
        """Of the input, in Hz."""
        return self.config.sampling_rate

    @property
    def frame_rate(self) -> float:
        """Units per second (Hz)."""
        return self.config.frame_rate

    @property
    def num_units(self) -> int:
        """Number of distinct units."""
        return self.config.num_units

    @property
    def samples_per_unit(self) -> int:
        """Samples from the beginning of one unit to that of the next."""
        return self.config.pooling * self.backbone.hop_samples

    @property
    def samples_per_window(self) -> int:
        """Samples that an utterance needs for its first unit; every further one needs `samples_per_unit` more."""
        return self.samples_per_unit - self.backbone.hop_samples + self.backbone.window_samples

    @property
    def context_seconds(self) -> float:
        """Seconds of audio on each side of a unit that it can depend on; infinite without a window or blocks.

        A unit of a stream is therefore known this long after it was spoken, plus the chunk that is being collected.
        """
        context = self._context_units
        if context is None:
            return math.inf
        return (context * self.samples_per_unit + self.samples_per_window) / self.sampling_rate

    @property
    def _context_units(self) -> int | None:
        if self.config.block_units is not None:
            # The first unit of a block hears its last one, and the context after that.
            return self.config.block_units - 1 + self.config.block_context
        frames = self.backbone.context_frames
        return None if frames is None else math.ceil(frames / self.config.pooling)

    def num_samples_to_num_units(self, num_samples: int) -> int:
        """Return the number of units of an utterance of `num_samples` samples."""
        return max(0, (num_samples - self.samples_per_window) // self.samples_per_unit + 1)

    def forward(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> SpeechEncoderOutput:
        """Encode a padded batch.

        Args:
            input_values (`torch.FloatTensor` of shape `(batch, samples)`): mono waveforms at `sampling_rate`.
            attention_mask (`torch.Tensor` of shape `(batch, samples)`, *optional*): 1 on the audio, 0 on the padding,
                which must follow the audio. Default: no padding.

        Returns:
            [`SpeechEncoderOutput`].

        Raises `ValueError` for audio shorter than 80 ms, for NaN, and for padding before the audio.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_values, dtype=torch.long)
        mask = attention_mask.bool()
        if (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError("attention_mask has padding before audio; pad the waveforms on the right")
        waveforms = [row[:length] for row, length in zip(input_values, mask.sum(-1).tolist(), strict=True)]
        features = self.extract_features(waveforms, batch_size=len(waveforms))
        units = self._units_of_utterances(features)
        return SpeechEncoderOutput(
            units=nn.utils.rnn.pad_sequence(units, batch_first=True, padding_value=-1),
            lengths=torch.tensor([len(item) for item in units], device=input_values.device),
            features=nn.utils.rnn.pad_sequence(features, batch_first=True),
        )

    @torch.inference_mode()
    def encode(self, waveforms: Sequence[np.ndarray | torch.Tensor], batch_size: int = 1) -> list[torch.LongTensor]:
        """Return the units of each waveform (1-D, mono, `sampling_rate` Hz), repeats kept, on the CPU.

        The units do not depend on `batch_size`. On a CPU 1 is fastest: nothing is padded and the activations stay in
        the cache.

        Raises `ValueError` as [`~SpeechEncoder.forward`] does, when the quantizer has not been fitted, and when it
        finds nothing but blanks in a waveform.
        """
        return [units.cpu() for units in self._units_of_utterances(self.extract_features(waveforms, batch_size))]

    def stream(self, chunk_seconds: float = 1.0) -> "UnitStream":
        """Return a [`UnitStream`], which takes one waveform piece by piece and returns its units as they are known.

        Args:
            chunk_seconds (`float`, default 1.0): new audio that is collected before the model runs. More costs less
                computing, less costs less delay. An encoder of blocks runs whenever a block and its context are there.

        Raises `ValueError` when the units can depend on audio of any distance.
        """
        if self._context_units is None:
            raise ValueError(
                "the units of this encoder depend on the whole utterance; a stream needs block_units, or a 'hubert' "
                "backbone with an attention_window and feat_extract_norm 'layer'. Use encode on the finished "
                "recording instead"
            )
        if not chunk_seconds > 0:
            raise ValueError(f"chunk_seconds is {chunk_seconds}; it must be positive")
        return _WindowStream(self, chunk_seconds) if self.config.block_units is None else _BlockStream(self)

    def round_weights(self) -> None:
        """Store the weights of linear layers and convolutions in 8 bits from now on, a quarter of their bytes."""
        round_weights(self)
        self.config.weight_bits = 8

    def unround_weights(self) -> None:
        """Make the weights trainable again; they keep the values they were rounded to."""
        unround_weights(self)
        self.config.weight_bits = None

    def _units_of_utterances(self, features: Sequence[torch.Tensor]) -> list[torch.LongTensor]:
        """Quantize the features of each utterance; an error says which one."""
        units = []
        for index, item in enumerate(features):
            try:
                units.append(self.features_to_units(item))
            except ValueError as error:
                raise ValueError(f"waveform {index}: {error}") from error
        return units

    def features_to_units(self, features: torch.Tensor) -> torch.LongTensor:
        """Quantize features of shape `(..., U, D)`, whole utterances, to units of shape `(..., U)`.

        A blank of a linear quantizer is replaced by the unit on its left, at the beginning by the first unit.

        Raises `ValueError` when the quantizer has not been fitted and when an utterance is all blank.
        """
        units = self._quantize(features)
        return units if self.config.quantizer == "centroids" else replace_blanks(units, self.num_units)

    def _quantize(self, features: torch.Tensor) -> torch.LongTensor:
        """Quantize features of shape `(..., D)`; blanks stay."""
        if not self.quantizer.is_fitted:
            raise ValueError("the quantizer has no centroids; fit them with fit_kmeans or load a fitted encoder")
        return self.quantizer(features)

    @torch.no_grad()
    def extract_features(
        self, waveforms: Sequence[np.ndarray | torch.Tensor], batch_size: int = 1
    ) -> list[torch.FloatTensor]:
        """Return the averaged backbone frames of each waveform, shape `(U, D)`, on the model's device.

        Args:
            waveforms: 1-D, mono, `sampling_rate` Hz, any lengths of at least 80 ms.
            batch_size: chunks that run together; chunks of similar length share a batch.
        """
        chunks: list[AudioChunk] = []
        owners: list[int] = []
        for index, waveform in enumerate(waveforms):
            pieces = self._split_into_chunks(self._check_waveform(waveform, index))
            chunks += pieces
            owners += [index] * len(pieces)
        order = sorted(range(len(chunks)), key=lambda position: len(chunks[position].waveform))
        pieces_of_waveform: list[list[torch.Tensor]] = [[] for _ in waveforms]
        features: list[torch.Tensor | None] = [None] * len(chunks)
        for start in range(0, len(order), batch_size):
            positions = order[start : start + batch_size]
            for position, item in zip(positions, self._encode_chunks([chunks[p] for p in positions]), strict=True):
                features[position] = item
        for owner, item in zip(owners, features, strict=True):
            pieces_of_waveform[owner].append(item)
        return [torch.cat(pieces) for pieces in pieces_of_waveform]

    def _check_waveform(self, waveform: np.ndarray | torch.Tensor, index: int) -> torch.Tensor:
        """Return a float32 tensor on the model's device; refuse what has no units."""
        waveform = self._to_finite_mono(waveform, f"waveform {index}")
        self._check_duration(len(waveform), f"waveform {index}")
        return waveform

    def _to_finite_mono(self, waveform: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
        waveform = torch.as_tensor(waveform).to(self.device, torch.float32)
        if waveform.dim() != 1:
            raise ValueError(f"{name} has shape {tuple(waveform.shape)}; expected mono audio, one dimension")
        if not torch.isfinite(waveform).all():
            raise ValueError(f"{name} holds NaN or infinite samples; expected finite samples in [-1, 1]")
        return waveform

    def _check_duration(self, num_samples: int, name: str) -> None:
        milliseconds = 1000 / self.sampling_rate
        minimum = max(1000 * MIN_SECONDS, self.samples_per_window * milliseconds)
        if num_samples * milliseconds < minimum:
            raise ValueError(
                f"{name} lasts {num_samples * milliseconds:.0f} ms; speech units need at least {minimum:.0f} ms of "
                f"audio at {self.sampling_rate} Hz"
            )

    def _split_into_chunks(self, waveform: torch.Tensor) -> list[AudioChunk]:
        """Cut at unit boundaries, into blocks or into the fewest chunks that the backbone can take, of one length."""
        num_units = self.num_samples_to_num_units(len(waveform))
        if self.config.block_units is not None:
            return [self._block(waveform, start, num_units) for start in range(0, num_units, self.config.block_units)]
        units_per_chunk = self.backbone.max_frames // self.config.pooling
        num_chunks = math.ceil(num_units / units_per_chunk)
        edges = [num_units * chunk // num_chunks for chunk in range(num_chunks + 1)]
        context = self._context_units or 0
        chunks = []
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            first, last = max(0, start - context), min(num_units, stop + context)
            # An incomplete unit at the very end gets no unit of its own, but is heard as context where there is room.
            num_heard = max(last - first, units_per_chunk) if last == num_units else last - first
            end = first * self.samples_per_unit + (num_heard - 1) * self.samples_per_unit + self.samples_per_window
            chunks.append(AudioChunk(waveform[first * self.samples_per_unit : end], start - first, stop - first))
        return chunks

    def _block(self, waveform: torch.Tensor, start: int, num_units: int) -> AudioChunk:
        """Return the block that begins at unit `start` of a waveform of `num_units`.

        It hears its context, but for what the waveform lacks of it; where it lacks some after the block, what follows
        the last whole unit is heard instead.
        """
        size, context = self.config.block_units, self.config.block_context
        first, last = max(0, start - context), start + size + context
        end = (last - 1) * self.samples_per_unit + self.samples_per_window if last <= num_units else len(waveform)
        samples = waveform[first * self.samples_per_unit : end]
        return AudioChunk(samples, start - first, min(start + size, num_units) - first)

    def _encode_chunks(self, chunks: Sequence[AudioChunk]) -> list[torch.Tensor]:
        """Return the averaged frames `(U, D)` of each chunk, without its context, all computed in one batch."""
        frames = self.backbone.waveforms_to_frames([chunk.waveform for chunk in chunks])
        items = zip(frames, chunks, strict=True)
        return [self.pool(item)[chunk.start : chunk.stop] for item, chunk in items]

    def pool(self, frames: torch.Tensor) -> torch.Tensor:
        """Average every `pooling` frames: `(T, D)` -> `(T // pooling, D)`."""
        num_units = len(frames) // self.config.pooling
        return frames[: num_units * self.config.pooling].unflatten(0, (num_units, self.config.pooling)).mean(1)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change when the weights, the layer, the pooling or the cutting changes.

        Units of two encoders can be mixed only when their fingerprints agree.
        """
        digest = hashlib.sha256(f"layer {self.config.layer} pooling {self.config.pooling}".encode())
        if self.config.attention_window is not None:
            digest.update(f" window {self.config.attention_window}".encode())
        if self.config.block_units is not None:
            digest.update(f" blocks {self.config.block_units} {self.config.block_context}".encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save_quantizer(self, folder: str | os.PathLike) -> None:
        """Write config.json and quantizer.safetensors only, for a folder whose backbone comes from elsewhere."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        state = {name: tensor.contiguous().cpu() for name, tensor in self.quantizer.state_dict().items()}
        partial = folder / f".{QUANTIZER_FILE}.partial"
        save_file(state, partial, metadata={"format": "pt"})
        os.replace(partial, folder / QUANTIZER_FILE)

    def load_quantizer(self, folder: str | os.PathLike) -> None:
        """Read the quantizer.safetensors that [`~SpeechEncoder.save_quantizer`] wrote into this encoder.

        Raises `ValueError` when the file is missing or its shapes do not fit this encoder.
        """
        path = Path(folder) / QUANTIZER_FILE
        if not path.is_file():
            raise ValueError(f"{path} does not exist; expected the centroids that save_quantizer writes")
        try:
            self.quantizer.load_state_dict(load_file(path))
        except Exception as error:
            raise ValueError(f"{path} does not fit this speech encoder: {error}") from error


class UnitStream:
    """The units of one waveform that arrives in pieces, equal to those of [`~SpeechEncoder.encode`] on the whole.

    Made by [`~SpeechEncoder.stream`]:

    ```python
    stream = encoder.stream()
    for piece in pieces:
        units = stream.push(piece)  # those that nothing to come can change, possibly none
    units = stream.finish()  # the rest
    ```
    """

    def __init__(self, encoder: SpeechEncoder):
        self.encoder = encoder
        self.num_samples = 0
        self._samples = torch.zeros(0, device=encoder.device)
        self._held = torch.zeros(0, dtype=torch.long)  # blanks before the first unit
        self._previous: int | None = None
        self._is_finished = False

    @torch.inference_mode()
    def push(self, waveform: np.ndarray | torch.Tensor) -> torch.LongTensor:
        """Take the next piece, 1-D of any length, and return the units that have become certain, on the CPU.

        Raises `ValueError` for a piece that is not mono or not finite, and after the end.
        """
        if self._is_finished:
            raise ValueError("the stream has been finished; begin a new one for the next recording")
        waveform = self.encoder._to_finite_mono(waveform, "the piece")
        self.num_samples += len(waveform)
        self._samples = torch.cat([self._samples, waveform])
        return self._without_blanks(self._certain_units())

    @torch.inference_mode()
    def finish(self) -> torch.LongTensor:
        """Return the units of the rest, on the CPU; the recording ends here.

        Raises `ValueError` when the whole recording lasts less than 80 ms or is all blank.
        """
        self._is_finished = True
        self.encoder._check_duration(self.num_samples, "the recording")
        units = self._without_blanks(self._last_units())
        return replace_blanks(self._held, self.encoder.num_units) if len(self._held) else units

    def _certain_units(self) -> torch.LongTensor:
        """Quantize, blanks included, what nothing to come can change, and let go of what no later unit depends on."""
        raise NotImplementedError

    def _last_units(self) -> torch.LongTensor:
        """Quantize all that is left."""
        raise NotImplementedError

    def _without_blanks(self, units: torch.LongTensor) -> torch.LongTensor:
        """Replace blanks; those before the first unit wait for it."""
        if self.encoder.config.quantizer == "centroids" or not len(units):
            return units
        units = torch.cat([self._held, units])
        if self._previous is None and bool((units == self.encoder.num_units).all()):
            self._held = units
            return units[:0]
        units = replace_blanks(units, self.encoder.num_units, self._previous)
        self._held, self._previous = units[:0], int(units[-1])
        return units


class _WindowStream(UnitStream):
    """For an encoder whose frames attend to a window.

    Kept between pieces: the samples that no complete frame covers yet, and the convolved frames that later units can
    still depend on.
    """

    def __init__(self, encoder: SpeechEncoder, chunk_seconds: float):
        super().__init__(encoder)
        self.chunk_units = max(1, round(chunk_seconds * encoder.frame_rate))
        self._context = encoder._context_units * encoder.config.pooling
        self._convolved = torch.zeros(0, encoder.backbone.hidden_size, device=encoder.device, dtype=encoder.dtype)
        self._num_done = 0  # frames at the beginning of `_convolved` whose units have been computed

    def _certain_units(self) -> torch.LongTensor:
        if len(self._samples) < self.chunk_units * self.encoder.samples_per_unit:
            return torch.zeros(0, dtype=torch.long)
        self._convolve()
        return self._take_units(len(self._convolved) - self._context)

    def _last_units(self) -> torch.LongTensor:
        self._convolve()
        return self._take_units(len(self._convolved))

    def _convolve(self) -> None:
        """Turn the samples of all complete frames into convolved frames."""
        backbone = self.encoder.backbone
        if len(self._samples) >= backbone.window_samples:
            convolved = backbone.waveforms_to_convolved([self._samples])[0]
            self._convolved = torch.cat([self._convolved, convolved])
            self._samples = self._samples[len(convolved) * backbone.hop_samples :]

    def _take_units(self, num_certain: int) -> torch.LongTensor:
        """Compute the units of the frames up to `num_certain`, and drop the frames that no later unit depends on."""
        encoder, pooling = self.encoder, self.encoder.config.pooling
        stop = self._num_done + max(0, num_certain - self._num_done) // pooling * pooling
        if stop == self._num_done:
            return torch.zeros(0, dtype=torch.long)
        frames = encoder.backbone.convolved_to_frames([self._convolved])[0]
        units = encoder._quantize(encoder.pool(frames[self._num_done : stop])).cpu()
        dropped = max(0, stop - self._context) // pooling * pooling
        self._convolved, self._num_done = self._convolved[dropped:], stop - dropped
        return units


class _BlockStream(UnitStream):
    """For an encoder of blocks. Kept between pieces: the samples that later blocks hear."""

    def __init__(self, encoder: SpeechEncoder):
        super().__init__(encoder)
        self._start = 0  # unit of `_samples` at which the next block begins

    def _certain_units(self) -> torch.LongTensor:
        return self._take_blocks(self.encoder.config.block_units + self.encoder.config.block_context)

    def _last_units(self) -> torch.LongTensor:
        return self._take_blocks(1)

    def _take_blocks(self, num_needed: int) -> torch.LongTensor:
        """Compute blocks as long as there are `num_needed` units from their beginning on."""
        encoder, config = self.encoder, self.encoder.config
        units = [torch.zeros(0, dtype=torch.long)]
        while (num_units := encoder.num_samples_to_num_units(len(self._samples))) >= self._start + num_needed:
            block = encoder._block(self._samples, self._start, num_units)
            units.append(encoder._quantize(encoder._encode_chunks([block])[0]).cpu())
            dropped = max(0, self._start + config.block_units - config.block_context)
            self._samples = self._samples[dropped * encoder.samples_per_unit :]
            self._start += config.block_units - dropped
        return torch.cat(units)


# `save_pretrained` then copies this file and the ones it imports next to the weights.
SpeechEncoder.register_for_auto_class("AutoModel")
