"""Waveform -> style tokens: a wav2vec 2.0 classifier that names the speaking style of every second.

SPIRIT-LM (Nguyen et al. 2024, arXiv 2402.05755, section 2.2) fine-tunes wav2vec 2.0 (Baevski et al. 2020, arXiv
2006.11477) as a style classifier, averages its frames over windows of one second and takes the most likely class.

Shapes: B batch, S samples, T backbone frames (50 Hz), W windows (1 Hz), C projector channels, K number of styles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, Wav2Vec2Config, Wav2Vec2Model
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2FeatureEncoder
from transformers.utils import ModelOutput

from .configuration_tinywave import StyleEncoderConfig

MIN_SECONDS = 0.08
MAX_CHUNK_SECONDS = 100.0


@dataclass
class StyleEncoderOutput(ModelOutput):
    """Output of [`StyleEncoder`].

    Args:
        logits (`torch.FloatTensor` of shape `(batch, windows, num_styles)`): 0 where padded.
        styles (`torch.LongTensor` of shape `(batch, windows)`): the most likely style, -1 where padded.
        lengths (`torch.LongTensor` of shape `(batch,)`): windows of each utterance.
    """

    logits: torch.FloatTensor | None = None
    styles: torch.LongTensor | None = None
    lengths: torch.LongTensor | None = None


class UnpaddedFeatureEncoder(Wav2Vec2FeatureEncoder):
    """The convolutions of wav2vec 2.0, run on each waveform alone.

    The first layer of wav2vec 2.0 base normalizes each channel over the whole time axis, so that the padding of a
    batch would change every frame.
    """

    def forward(self, input_values: Sequence[torch.Tensor]) -> torch.Tensor:
        """B waveforms `(S,)` -> features `(B, C, T)`, zero past the end."""
        features = [super(UnpaddedFeatureEncoder, self).forward(waveform[None])[0].T for waveform in input_values]
        return nn.utils.rnn.pad_sequence(features, batch_first=True).transpose(1, 2)


class StyleEncoder(PreTrainedModel):
    """Speech -> style tokens of 1 Hz.

    Token i stands for the backbone frames `50 i .. 50 i + 49`, the samples from `16000 i` on; the last window may be
    shorter. Repeats are kept. Every token has heard the whole utterance, up to 100 s; longer audio is cut into equal
    chunks at the edges of windows. Silence has tokens like any other audio, and they say nothing.

    Names of the published `style_encoder_w2v2/pytorch_model.bin` and of this model:

    | published | here |
    |---|---|
    | `wav2vec2.*` | `backbone.*` |
    | `projector.*` | `projector.*` |
    | `classifier.*` | `classifier.*` |
    | `layer_weights` (where the configuration has use_weighted_layer_sum) | `layer_weights` |

    Args:
        config ([`StyleEncoderConfig`]): `backbone_config` must describe a wav2vec 2.0 model.

    Raises `ValueError` when the backbone is another model or has an adapter.
    """

    config_class = StyleEncoderConfig
    base_model_prefix = "style_encoder"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    _supports_sdpa = True
    _no_split_modules = ["Wav2Vec2EncoderLayer", "Wav2Vec2EncoderLayerStableLayerNorm"]

    def __init__(self, config: StyleEncoderConfig):
        super().__init__(config)
        backbone_config = dict(config.backbone_config or {"model_type": "wav2vec2"})
        model_type = backbone_config.pop("model_type", None)
        if model_type != "wav2vec2":
            raise ValueError(f"backbone_config has model_type {model_type!r}; the style encoder supports 'wav2vec2'")
        backbone_config = Wav2Vec2Config(**backbone_config)
        if backbone_config.add_adapter:
            raise ValueError("backbone_config has add_adapter, which changes the frame rate; expected no adapter")
        backbone_config._attn_implementation = config._attn_implementation
        self.backbone = Wav2Vec2Model(backbone_config)
        self.backbone.feature_extractor = UnpaddedFeatureEncoder(backbone_config)
        if config.use_weighted_layer_sum:
            self.layer_weights = nn.Parameter(torch.zeros(backbone_config.num_hidden_layers + 1))
        self.projector = nn.Linear(backbone_config.hidden_size, config.projector_size)
        self.classifier = nn.Linear(config.projector_size, config.num_styles)
        self.post_init()

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, StyleEncoder) and self.config.use_weighted_layer_sum:
            nn.init.zeros_(module.layer_weights)  # all layers alike

    @property
    def sampling_rate(self) -> int:
        """Of the input, in Hz."""
        return self.config.sampling_rate

    @property
    def samples_per_style(self) -> int:
        """Samples of the input that one style token covers."""
        return self.config.window_frames * self.backbone.config.inputs_to_logits_ratio

    @property
    def style_rate(self) -> float:
        """Style tokens per second (Hz)."""
        return self.sampling_rate / self.samples_per_style

    @property
    def num_styles(self) -> int:
        """Number of distinct styles."""
        return self.config.num_styles

    def forward(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> StyleEncoderOutput:
        """Classify the windows of a padded batch.

        Args:
            input_values (`torch.FloatTensor` of shape `(batch, samples)`): mono waveforms at `sampling_rate`.
            attention_mask (`torch.Tensor` of shape `(batch, samples)`, *optional*): 1 on the audio, 0 on the padding,
                which must follow the audio. Default: no padding.

        Returns:
            [`StyleEncoderOutput`].

        Raises `ValueError` for audio shorter than 80 ms, for NaN, and for padding before the audio.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_values, dtype=torch.long)
        mask = attention_mask.bool()
        if (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError("attention_mask has padding before audio; pad the waveforms on the right")
        rows = [row[:length] for row, length in zip(input_values, mask.sum(-1).tolist(), strict=True)]
        logits = self._classify([self._prepare(row, index) for index, row in enumerate(rows)])
        lengths = torch.tensor([len(item) for item in logits], device=input_values.device)
        padded = nn.utils.rnn.pad_sequence(logits, batch_first=True)
        past = torch.arange(padded.shape[1], device=lengths.device) >= lengths[:, None]
        return StyleEncoderOutput(logits=padded, styles=padded.argmax(-1).masked_fill(past, -1), lengths=lengths)

    @torch.inference_mode()
    def encode(self, waveforms: Sequence[np.ndarray | torch.Tensor], batch_size: int = 1) -> list[torch.LongTensor]:
        """Return the style tokens of each waveform (1-D, mono, `sampling_rate` Hz), repeats kept, on the CPU.

        The tokens do not depend on `batch_size`. `config.style_names` has a name for each, where there are names.

        Raises `ValueError` as [`~StyleEncoder.forward`] does.
        """
        chunks: list[torch.Tensor] = []
        owners: list[int] = []
        for index, waveform in enumerate(waveforms):
            pieces = self._split_into_chunks(self._prepare(waveform, index))
            chunks += pieces
            owners += [index] * len(pieces)
        pieces_of_waveform: list[list[torch.Tensor]] = [[] for _ in waveforms]
        order = sorted(range(len(chunks)), key=lambda position: len(chunks[position]))
        logits: list[torch.Tensor | None] = [None] * len(chunks)
        for start in range(0, len(order), batch_size):
            positions = order[start : start + batch_size]
            for position, item in zip(positions, self._classify([chunks[p] for p in positions]), strict=True):
                logits[position] = item
        for owner, item in zip(owners, logits, strict=True):
            pieces_of_waveform[owner].append(item.argmax(-1).cpu())
        return [torch.cat(pieces) for pieces in pieces_of_waveform]

    def _prepare(self, waveform: np.ndarray | torch.Tensor, index: int) -> torch.Tensor:
        """Return the waveform on the model's device at the level the backbone expects; refuse what has no style."""
        waveform = torch.as_tensor(waveform).to(self.device, torch.float32)
        if waveform.dim() != 1:
            raise ValueError(f"waveform {index} has shape {tuple(waveform.shape)}; expected mono audio, one dimension")
        if len(waveform) < MIN_SECONDS * self.sampling_rate:
            raise ValueError(
                f"waveform {index} lasts {1000 * len(waveform) / self.sampling_rate:.0f} ms; a style token needs at "
                f"least {1000 * MIN_SECONDS:.0f} ms of audio at {self.sampling_rate} Hz"
            )
        if not torch.isfinite(waveform).all():
            raise ValueError(f"waveform {index} holds NaN or infinite samples; expected finite samples in [-1, 1]")
        if self.config.normalize_level:
            variance, mean = torch.var_mean(waveform, correction=0)
            waveform = (waveform - mean) / (variance + 1e-7).sqrt()
        return waveform.to(self.dtype)

    def _split_into_chunks(self, waveform: torch.Tensor) -> list[torch.Tensor]:
        """Cut at window edges into the fewest chunks of at most 100 s, all of nearly the same length.

        A chunk reaches into the next by what its last frame needs, so that the chunks together have the frames of the
        whole.
        """
        num_frames = int(self.backbone._get_feat_extract_output_lengths(len(waveform)))
        num_windows = math.ceil(num_frames / self.config.window_frames)
        num_chunks = math.ceil(num_windows / max(1, int(MAX_CHUNK_SECONDS * self.style_rate)))
        edges = [num_windows * chunk // num_chunks * self.samples_per_style for chunk in range(num_chunks)]
        overlap = self._receptive_field - self.backbone.config.inputs_to_logits_ratio
        ends = [edge + overlap for edge in edges[1:]] + [len(waveform)]
        return [waveform[start:end] for start, end in zip(edges, ends, strict=True)]

    @property
    def _receptive_field(self) -> int:
        """Samples that one backbone frame is computed from."""
        field, hop = 1, 1
        for kernel, stride in zip(self.backbone.config.conv_kernel, self.backbone.config.conv_stride, strict=True):
            field += (kernel - 1) * hop
            hop *= stride
        return field

    def _classify(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the logits `(W, K)` of each prepared waveform, all computed in one batch."""
        lengths = torch.tensor([len(waveform) for waveform in waveforms], device=self.device)
        attention_mask = None
        if lengths.min() < lengths.max():
            attention_mask = torch.arange(int(lengths.max()), device=self.device) < lengths[:, None]
        layers = self.config.use_weighted_layer_sum
        output = self.backbone(waveforms, attention_mask, output_hidden_states=layers)
        hidden = output.last_hidden_state
        if layers:
            weights = self.layer_weights.softmax(0)
            hidden = sum(weight * state for weight, state in zip(weights, output.hidden_states, strict=True))
        hidden = self.projector(hidden)
        counts = self.backbone._get_feat_extract_output_lengths(lengths).tolist()
        windows = [row[:count].split(self.config.window_frames) for row, count in zip(hidden, counts, strict=True)]
        return [self.classifier(torch.stack([window.mean(0) for window in row])) for row in windows]


# `save_pretrained` then copies this file and the configuration next to the weights.
StyleEncoder.register_for_auto_class("AutoModel")
