"""Waveform -> frames of one transformer layer: the backbones of the speech encoder.

Every backbone has the same five properties and `waveforms_to_frames`, in two steps: convolutions and transformer. None
lets the frames of an utterance depend on what else is in the batch.

Shapes: B batch, S samples, M mel frames (100 Hz), T backbone frames, D backbone width.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import nn
from transformers import HubertConfig, HubertModel, WhisperConfig
from transformers.audio_utils import mel_filter_bank
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from .configuration_tinywave import SpeechEncoderConfig

_WINDOW_SAMPLES = 400
_HOP_SAMPLES = 160
_MEL_FRAMES_PER_BACKBONE_FRAME = 2
_HUBERT_SECONDS = 100.0


def length_mask(lengths: Sequence[int], frames: torch.Tensor) -> torch.BoolTensor:
    """Return a mask of shape `(B, L)` that is True before the end of each item of `frames`, shape `(B, L, ...)`."""
    lengths = torch.tensor(lengths, device=frames.device)
    return torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]


def additive_attention_mask(
    lengths: Sequence[int], hidden_states: torch.Tensor, window: int | None = None
) -> torch.Tensor | None:
    """Return what is added to the attention scores: 0 for frames that may be seen, the lowest number for others.

    Args:
        lengths: frames of each item.
        hidden_states (`torch.Tensor` of shape `(B, T, D)`): the padded batch.
        window (`int`, *optional*): frames seen to each side. Default: all.

    Returns:
        Tensor of shape `(B, 1, T, T)`, or `None` where every frame may see every other. Frames past the end of an item
        see whatever is there: a row without any frame to see would be NaN.
    """
    num_frames = hidden_states.shape[1]
    if min(lengths) == num_frames and (window is None or window >= num_frames - 1):
        return None
    visible = length_mask(lengths, hidden_states)[:, None, None].expand(-1, 1, num_frames, -1)
    if window is not None:
        position = torch.arange(num_frames, device=hidden_states.device)
        visible = visible & ((position[:, None] - position).abs() <= window)
    mask = torch.zeros(visible.shape, dtype=hidden_states.dtype, device=hidden_states.device)
    return mask.masked_fill(~visible, torch.finfo(hidden_states.dtype).min)


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
    valid = length_mask([len(waveform) // _HOP_SAMPLES for waveform in waveforms], log_mel)[:, :, None]
    maximum = log_mel.masked_fill(~valid, -math.inf).amax(dim=(1, 2), keepdim=True)
    log_mel = (torch.maximum(log_mel, maximum - 8.0) + 4.0) / 4.0
    return log_mel.masked_fill(~valid, 0.0).transpose(1, 2)


class WhisperBackbone(WhisperEncoder):
    """The first layers of a Whisper encoder (Radford et al. 2022, arXiv 2212.04356), 50 frames a second.

    Whisper pads every window to 30 s. Its encoder also works on short windows, and here it runs on the speech alone:
    frames beyond the end of an utterance are masked everywhere.

    Args:
        config (`WhisperConfig`): of the whole encoder.
        layer (`int`): layers to build; the output of the last of them, without the encoder's final norm, is returned.
        sampling_rate (`int`): of the waveforms, in Hz.
    """

    hop_samples = _MEL_FRAMES_PER_BACKBONE_FRAME * _HOP_SAMPLES
    """Samples from one frame to the next."""
    window_samples = hop_samples
    """Samples that an utterance needs for its first frame; every further one needs `hop_samples` more."""
    context_frames = None
    """Frames on each side that a frame depends on; `None` when it depends on all."""

    def __init__(self, config: WhisperConfig, layer: int, sampling_rate: int):
        config.encoder_layers = layer
        super().__init__(config)
        # The final norm belongs to the last layer of the whole encoder; the quantizer reads the raw layer output.
        self.layer_norm = nn.Identity()
        self.sampling_rate = sampling_rate

    @property
    def hidden_size(self) -> int:
        """Width of the frames."""
        return self.config.d_model

    @property
    def max_frames(self) -> int:
        """Frames that can be computed at once (1500, which are 30 s)."""
        return self.config.max_source_positions

    def waveforms_to_frames(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the frames of each 1-D waveform, shape `(T, D)`, all computed in one batch."""
        return self.convolved_to_frames(self.waveforms_to_convolved(waveforms))

    def waveforms_to_convolved(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the outputs of the convolutions of each waveform, shape `(T, D)`: the transformer's input."""
        log_mel = log_mel_spectrogram(waveforms, self.config.num_mel_bins, self.sampling_rate)
        mel_lengths = [len(waveform) // _HOP_SAMPLES for waveform in waveforms]
        hidden_states = nn.functional.gelu(self.conv1(log_mel.to(self.conv1.weight.dtype)))
        # Alone, an utterance is followed by the zero padding of the second convolution.
        inside = length_mask(mel_lengths, hidden_states.transpose(1, 2))[:, None]
        hidden_states = nn.functional.gelu(self.conv2(hidden_states * inside)).transpose(1, 2)
        lengths = [math.ceil(length / _MEL_FRAMES_PER_BACKBONE_FRAME) for length in mel_lengths]
        return [item[:length] for item, length in zip(hidden_states, lengths, strict=True)]

    def convolved_to_frames(self, convolved: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the output of the last layer for each item of [`~WhisperBackbone.waveforms_to_convolved`]."""
        lengths = [len(item) for item in convolved]
        hidden_states = nn.utils.rnn.pad_sequence(list(convolved), batch_first=True)
        hidden_states = hidden_states + self.embed_positions.weight[: hidden_states.shape[1]]
        attention_mask = additive_attention_mask(lengths, hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask)
        return [item[:length] for item, length in zip(hidden_states, lengths, strict=True)]


class HubertBackbone(HubertModel):
    """The first layers of a HuBERT (Hsu et al. 2021, arXiv 2106.07447) with any convolutions in front.

    An eighth convolution of kernel 2 and stride 2 makes 25 frames a second of HuBERT's 50. No convolution pads, so an
    utterance of S samples has `(S - window_samples) // hop_samples + 1` frames. A norm over time after the first
    convolution (`feat_extract_norm="group"`) is taken over the utterance alone.

    Args:
        config (`HubertConfig`): of the whole model.
        layer (`int`): layers to build; the output of the last of them is returned. Where the model norms before its
            layers (`do_stable_layer_norm`), its own last layer is followed by its final norm, as `last_hidden_state`
            is; the layers before it are not.
        attention_window (`int`, *optional*): frames that a frame attends to on each side. Default: all.
    """

    def __init__(self, config: HubertConfig, layer: int, attention_window: int | None = None):
        is_last = layer == config.num_hidden_layers
        config.num_hidden_layers = layer
        super().__init__(config)
        if config.do_stable_layer_norm and not is_last:
            self.encoder.layer_norm = nn.Identity()
        self.attention_window = attention_window

    @property
    def hidden_size(self) -> int:
        """Width of the frames."""
        return self.config.hidden_size

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next (640 at 25 Hz)."""
        return math.prod(self.config.conv_stride)

    @property
    def window_samples(self) -> int:
        """Samples that an utterance needs for its first frame (720 at 25 Hz); every further one needs a hop more."""
        window, hop = 1, 1
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            window += (kernel - 1) * hop
            hop *= stride
        return window

    @property
    def max_frames(self) -> int:
        """Frames that are computed at once: 100 s of them at 16 kHz."""
        return int(_HUBERT_SECONDS * 16_000 / self.hop_samples)

    @property
    def context_frames(self) -> int | None:
        """Frames on each side that a frame depends on; `None` when it depends on all."""
        if self.attention_window is None or self.config.feat_extract_norm == "group":
            return None
        return len(self.encoder.layers) * self.attention_window + self.config.num_conv_pos_embeddings // 2

    def waveforms_to_frames(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the frames of each 1-D waveform, shape `(T, D)`, all layers computed in one batch."""
        return self.convolved_to_frames(self.waveforms_to_convolved(waveforms))

    def waveforms_to_convolved(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the projected outputs of the convolutions of each waveform, shape `(T, D)`: the transformer's input.

        Frame i depends on the samples from `i * hop_samples` on, `window_samples` of them, and on no others unless the
        first convolution is normed over time.
        """
        waveforms = [waveform.to(self.feature_projection.projection.weight.dtype) for waveform in waveforms]
        if self.config.feat_extract_norm == "group":
            # Its statistics would include the padding of a shorter utterance.
            convolved = [self.feature_extractor(waveform[None])[0] for waveform in waveforms]
        else:
            convolved = self.feature_extractor(nn.utils.rnn.pad_sequence(waveforms, batch_first=True))
        lengths = [(len(waveform) - self.window_samples) // self.hop_samples + 1 for waveform in waveforms]
        items = zip(convolved, lengths, strict=True)
        return [self.feature_projection(item[None, :, :length].transpose(1, 2))[0] for item, length in items]

    def convolved_to_frames(self, convolved: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the output of the last layer for each item of [`~HubertBackbone.waveforms_to_convolved`]."""
        lengths = [len(item) for item in convolved]
        encoder = self.encoder
        # Alone, an utterance is surrounded by the zero padding of the positional convolution.
        hidden_states = nn.utils.rnn.pad_sequence(list(convolved), batch_first=True)
        hidden_states = hidden_states + encoder.pos_conv_embed(hidden_states)
        if not self.config.do_stable_layer_norm:
            hidden_states = encoder.layer_norm(hidden_states)
        hidden_states = encoder.dropout(hidden_states)
        attention_mask = additive_attention_mask(lengths, hidden_states, self.attention_window)
        for layer in encoder.layers:
            hidden_states = layer(hidden_states, attention_mask)
        if self.config.do_stable_layer_norm:
            hidden_states = encoder.layer_norm(hidden_states)
        return [item[:length] for item, length in zip(hidden_states, lengths, strict=True)]


def build_backbone(config: SpeechEncoderConfig) -> WhisperBackbone | HubertBackbone:
    """Return the backbone that `config.backbone_config` describes, as far as `config.layer`, with random weights.

    Raises `ValueError` for another `model_type`, for a layer that the backbone does not have, and for an attention
    window on Whisper.
    """
    settings = dict(config.backbone_config or {"model_type": "whisper"})
    model_type = settings.pop("model_type", None)
    if model_type == "whisper":
        backbone_config = WhisperConfig(**settings)
    elif model_type == "hubert":
        backbone_config = HubertConfig(**settings)
    else:
        raise ValueError(
            f"backbone_config has model_type {model_type!r}; the speech encoder supports 'whisper' and 'hubert'"
        )
    if config.layer > backbone_config.num_hidden_layers:
        raise ValueError(f"layer is {config.layer}, but the backbone has {backbone_config.num_hidden_layers} layers")
    backbone_config._attn_implementation = config._attn_implementation
    if model_type == "hubert":
        return HubertBackbone(backbone_config, config.layer, config.attention_window)
    if config.attention_window is not None:
        raise ValueError("attention_window is set, but only a 'hubert' backbone can limit its attention; leave it out")
    return WhisperBackbone(backbone_config, config.layer, config.sampling_rate)
