"""Waveform -> phonetic units: the first layers of a Whisper encoder, averaged frames, nearest centroid.

Whisper (Radford et al. 2022, arXiv 2212.04356) pads every window to 30 s. Its encoder also works on short windows, and
here it runs on the speech alone: frames beyond the end of an utterance are masked everywhere, so the units of an
utterance do not depend on what else is in the batch.

Shapes: B batch, S samples, M mel frames (100 Hz), T backbone frames (50 Hz), U units (25 Hz), D backbone width,
K number of centroids.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, WhisperConfig
from transformers.audio_utils import mel_filter_bank
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import ModelOutput

from .configuration_tinywave import SpeechEncoderConfig

QUANTIZER_FILE = "quantizer.safetensors"
MIN_SECONDS = 0.08
MAX_CHUNK_SECONDS = 30.0
_WINDOW_SAMPLES = 400
_HOP_SAMPLES = 160
_MEL_FRAMES_PER_BACKBONE_FRAME = 2


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


class CentroidQuantizer(nn.Module):
    """Nearest centroid, by Euclidean distance after each dimension is shifted and scaled.

    Whisper's residual stream has a few dimensions of very large variance; without the scaling they alone would decide.

    Args:
        num_units (`int`): number of centroids K.
        hidden_size (`int`): width of the features D.

    Buffers, all float32: `mean` and `standard_deviation` of shape `(D,)`, `centroids` of shape `(K, D)` in the
    normalized space. All-zero centroids mean "not fitted yet".
    """

    def __init__(self, num_units: int, hidden_size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(hidden_size))
        self.register_buffer("standard_deviation", torch.ones(hidden_size))
        self.register_buffer("centroids", torch.zeros(num_units, hidden_size))

    @property
    def is_fitted(self) -> bool:
        """Whether the centroids have been fitted or loaded."""
        return bool(self.centroids.any())

    def normalize(self, features: torch.Tensor) -> torch.Tensor:
        """Shift and scale features of shape `(..., D)` to zero mean and unit variance per dimension."""
        return (features.float() - self.mean) / self.standard_deviation

    def forward(self, features: torch.Tensor) -> torch.LongTensor:
        """Return the index of the nearest centroid, shape `(...)`, for features of shape `(..., D)`."""
        similarity = self.normalize(features) @ self.centroids.T
        # |x - c|^2 = |x|^2 - 2 x.c + |c|^2, and |x|^2 is the same for every centroid.
        return (similarity - self.centroids.square().sum(-1) / 2).argmax(-1)


@lru_cache
def _mel_filters(num_mel_bins: int, sampling_rate: int) -> torch.Tensor:
    """Return Whisper's triangular mel filters, shape `(201, num_mel_bins)`, float32."""
    filters = mel_filter_bank(
        num_frequency_bins=1 + _WINDOW_SAMPLES // 2,
        num_mel_filters=num_mel_bins,
        min_frequency=0.0,
        max_frequency=sampling_rate / 2,
        sampling_rate=sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).float()


def log_mel_spectrogram(waveforms: Sequence[torch.Tensor], num_mel_bins: int, sampling_rate: int) -> torch.Tensor:
    """Return Whisper's log-mel features of each waveform, zero beyond its own end.

    Each waveform is reflected at its own two ends before anything is padded, and is normalized by its own maximum, so
    that the result is the same alone and in a batch.

    Args:
        waveforms: B 1-D float tensors of more than 200 samples each.

    Returns:
        `torch.FloatTensor` of shape `(B, num_mel_bins, M)` with M = longest waveform // 160 samples.
    """
    device = waveforms[0].device
    half = _WINDOW_SAMPLES // 2
    reflected = [nn.functional.pad(waveform[None], (half, half), mode="reflect")[0] for waveform in waveforms]
    padded = nn.utils.rnn.pad_sequence(reflected, batch_first=True)
    window = torch.hann_window(_WINDOW_SAMPLES, device=device)
    spectrum = torch.stft(padded, _WINDOW_SAMPLES, _HOP_SAMPLES, window=window, center=False, return_complex=True)
    # Whisper drops the last frame, which is centred on the end of the audio.
    power = spectrum[..., :-1].abs().square().transpose(1, 2)
    log_mel = (power @ _mel_filters(num_mel_bins, sampling_rate).to(device)).clamp(min=1e-10).log10()
    valid = _length_mask([len(waveform) // _HOP_SAMPLES for waveform in waveforms], log_mel)[:, :, None]
    maximum = log_mel.masked_fill(~valid, -math.inf).amax(dim=(1, 2), keepdim=True)
    log_mel = (torch.maximum(log_mel, maximum - 8.0) + 4.0) / 4.0
    return log_mel.masked_fill(~valid, 0.0).transpose(1, 2)


def _length_mask(lengths: Sequence[int], frames: torch.Tensor) -> torch.BoolTensor:
    """Return a mask of shape `(B, L)` that is True before the end of each item of `frames`, shape `(B, L, ...)`."""
    lengths = torch.tensor(lengths, device=frames.device)
    return torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]


class SpeechEncoder(PreTrainedModel):
    """Speech -> units of 25 Hz.

    One unit covers `pooling` frames of 20 ms: unit i stands for the samples `640 i .. 640 (i + 1)` at 16 kHz, and an
    utterance of S samples has `S // 640` units. Repeats are kept. Audio longer than 30 s is cut into equal chunks and
    the units are joined.

    Args:
        config ([`SpeechEncoderConfig`]): `backbone_config` must describe a Whisper model.

    Raises `ValueError` when the backbone is not Whisper or has fewer layers than `config.layer`.
    """

    config_class = SpeechEncoderConfig
    base_model_prefix = "speech_encoder"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    _supports_sdpa = True
    _no_split_modules = ["WhisperEncoderLayer"]

    def __init__(self, config: SpeechEncoderConfig):
        super().__init__(config)
        backbone_config = dict(config.backbone_config or {"model_type": "whisper"})
        model_type = backbone_config.pop("model_type", None)
        if model_type != "whisper":
            raise ValueError(f"backbone_config has model_type {model_type!r}; the speech encoder supports 'whisper'")
        backbone_config = WhisperConfig(**backbone_config)
        if config.layer > backbone_config.encoder_layers:
            raise ValueError(f"layer is {config.layer}, but the backbone has {backbone_config.encoder_layers} layers")
        backbone_config.encoder_layers = config.layer
        backbone_config._attn_implementation = config._attn_implementation
        self.backbone = WhisperEncoder(backbone_config)
        # The final norm belongs to the last layer of the whole encoder; the quantizer reads the raw layer output.
        self.backbone.layer_norm = nn.Identity()
        self.quantizer = CentroidQuantizer(config.num_units, backbone_config.d_model)
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
        """Samples of the input that one unit covers."""
        return self.config.pooling * _MEL_FRAMES_PER_BACKBONE_FRAME * _HOP_SAMPLES

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
        units = [self.features_to_units(item) for item in features]
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

        Raises `ValueError` as [`~SpeechEncoder.forward`] does, and when the quantizer has not been fitted.
        """
        return [self.features_to_units(item).cpu() for item in self.extract_features(waveforms, batch_size)]

    def features_to_units(self, features: torch.Tensor) -> torch.LongTensor:
        """Quantize features of shape `(..., D)` to units of shape `(...)`.

        Raises `ValueError` when the quantizer has not been fitted.
        """
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
            batch_size: chunks of at most 30 s that run together; chunks of similar length share a batch.
        """
        chunks: list[torch.Tensor] = []
        owners: list[int] = []
        for index, waveform in enumerate(waveforms):
            pieces = self._split_into_chunks(self._check_waveform(waveform, index))
            chunks += pieces
            owners += [index] * len(pieces)
        order = sorted(range(len(chunks)), key=lambda position: len(chunks[position]))
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
        waveform = torch.as_tensor(waveform).to(self.device, torch.float32)
        if waveform.dim() != 1:
            raise ValueError(f"waveform {index} has shape {tuple(waveform.shape)}; expected mono audio, one dimension")
        if len(waveform) < MIN_SECONDS * self.sampling_rate:
            raise ValueError(
                f"waveform {index} lasts {1000 * len(waveform) / self.sampling_rate:.0f} ms; speech units need at "
                f"least {1000 * MIN_SECONDS:.0f} ms of audio at {self.sampling_rate} Hz"
            )
        if not torch.isfinite(waveform).all():
            raise ValueError(f"waveform {index} holds NaN or infinite samples; expected finite samples in [-1, 1]")
        return waveform

    def _split_into_chunks(self, waveform: torch.Tensor) -> list[torch.Tensor]:
        """Cut at unit boundaries into the fewest chunks of at most 30 s, all of nearly the same length."""
        num_units = len(waveform) // self.samples_per_unit
        units_per_chunk = int(MAX_CHUNK_SECONDS * self.frame_rate)
        num_chunks = math.ceil(num_units / units_per_chunk)
        edges = [num_units * chunk // num_chunks * self.samples_per_unit for chunk in range(num_chunks + 1)]
        # An incomplete unit at the very end gets no unit of its own, but is heard as context where there is room.
        edges[-1] = min(len(waveform), edges[-2] + units_per_chunk * self.samples_per_unit)
        return [waveform[start:end] for start, end in zip(edges[:-1], edges[1:], strict=True)]

    def _encode_chunks(self, chunks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the averaged frames `(U, D)` of each chunk of at most 30 s, all computed in one batch."""
        log_mel = log_mel_spectrogram(chunks, self.backbone.config.num_mel_bins, self.sampling_rate)
        mel_lengths = [len(chunk) // _HOP_SAMPLES for chunk in chunks]
        frames = self._backbone_frames(log_mel.to(self.backbone.conv1.weight.dtype), mel_lengths)
        pooling = self.config.pooling
        features = []
        for item, chunk in zip(frames, chunks, strict=True):
            num_units = len(chunk) // self.samples_per_unit
            features.append(item[: num_units * pooling].unflatten(0, (num_units, pooling)).mean(1))
        return features

    def _backbone_frames(self, log_mel: torch.Tensor, mel_lengths: Sequence[int]) -> torch.Tensor:
        """Return the output of layer `config.layer`, shape `(B, T, D)`; frames beyond an item's end are arbitrary."""
        backbone = self.backbone
        hidden_states = nn.functional.gelu(backbone.conv1(log_mel))
        # Alone, an utterance is followed by the zero padding of the second convolution.
        inside = _length_mask(mel_lengths, hidden_states.transpose(1, 2))[:, None]
        hidden_states = nn.functional.gelu(backbone.conv2(hidden_states * inside)).transpose(1, 2)
        hidden_states = hidden_states + backbone.embed_positions.weight[: hidden_states.shape[1]]
        lengths = [math.ceil(length / _MEL_FRAMES_PER_BACKBONE_FRAME) for length in mel_lengths]
        attention_mask = None
        if min(lengths) < hidden_states.shape[1]:
            inside = _length_mask(lengths, hidden_states)[:, None, None]
            attention_mask = torch.zeros_like(inside, dtype=hidden_states.dtype)
            attention_mask = attention_mask.masked_fill(~inside, torch.finfo(hidden_states.dtype).min)
            attention_mask = attention_mask.expand(-1, 1, hidden_states.shape[1], -1)
        for layer in backbone.layers:
            hidden_states = layer(hidden_states, attention_mask)
        return hidden_states

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change when the weights, the layer or the pooling change.

        Units of two encoders can be mixed only when their fingerprints agree.
        """
        digest = hashlib.sha256(f"layer {self.config.layer} pooling {self.config.pooling}".encode())
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


# `save_pretrained` then copies this file and the configuration next to the weights.
SpeechEncoder.register_for_auto_class("AutoModel")
