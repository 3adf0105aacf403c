"""Configurations of the TinyWave models: language model, speech, pitch and style encoder, and vocoder.

The id layout (which token ids are text, units, pitch and style) is a value of the configuration and never a constant
in code. Every configuration writes the whole `auto_map` itself: registering a class for the Auto API records only the
class being saved, and then `AutoModel.from_pretrained` fails on a folder saved from the causal language model.
"""

import copy
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, PreTrainedConfig


@dataclass(frozen=True)
class StreamSpec:
    """A stream of speech tokens: what its parts are called, and how its tokens are placed in a sequence.

    Args:
        name (`str`): in [`TinyWaveConfig.stream_ranges`], in recipes and on the command line.
        field (`str`): of `SpeechStreams`; also the column of a units folder and the key of a record in JSON.
        prefix (`str`): of the names of its tokens: "Hu" of "[Hu78]".
        size, offset (`str`): fields of [`TinyWaveConfig`] with the number of its tokens and the id of the first.
        rate (`str`): field with its values per second (Hz), repeats included.
        clock (`str`): field with the rate (Hz) at which its values are placed in time when streams are merged.
        merge_repeats (`bool`): whether consecutive repeats become one token.
    """

    name: str
    field: str
    prefix: str
    size: str
    offset: str
    rate: str
    clock: str
    merge_repeats: bool


# Every list of streams derives from this one. Tokens of equal time are written from the last stream to the first.
SPEECH_STREAMS = (
    StreamSpec("unit", "units", "Hu", "num_units", "unit_offset", "unit_rate", "unit_clock_rate", True),
    StreamSpec("pitch", "pitch", "Pi", "num_pitch_tokens", "pitch_offset", "pitch_rate", "pitch_rate", True),
    StreamSpec("style", "style", "St", "num_style_tokens", "style_offset", "style_rate", "style_rate", False),
)
STREAM_NAMES = tuple(stream.name for stream in SPEECH_STREAMS)
STREAM_FIELDS = {stream.name: stream.field for stream in SPEECH_STREAMS}
# The streams that a model may lack.
PROSODY_STREAMS = STREAM_NAMES[1:]

_PUBLISHED = {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}
_EXPRESSIVE = {
    **_PUBLISHED,
    "vocab_size": 32768,
    "pitch_offset": 32503,
    "num_pitch_tokens": 64,
    "style_offset": 32567,
    "num_style_tokens": 100,
}
_NANO = {
    "vocab_size": 1024,
    "text_vocab_size": 510,
    "text_offset": 4,
    "text_marker_id": 510,
    "speech_marker_id": 511,
    "unit_offset": 512,
    "num_units": 500,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
# Pitch and style follow the units; 1088 is the next multiple of 64 after the 1081 ids in use.
_NANO_EXPRESSIVE = {
    **_NANO,
    "vocab_size": 1088,
    "pitch_offset": 1012,
    "num_pitch_tokens": 64,
    "style_offset": 1076,
    "num_style_tokens": 5,
}
# The published sizes and ids are the defaults of `TinyWaveConfig` (arXiv 2506.23670, arXiv 2402.05755). The rotary
# base is not, because a Llama folder that does not name one means Llama's own default.
PRESETS: dict[str, dict[str, Any]] = {
    "speech-base-2b": _PUBLISHED,
    "speech-expressive-2b": _EXPRESSIVE,
    "interleaved-expressive-2b": _EXPRESSIVE,
    "spirit-lm-7b": {**_PUBLISHED, "num_hidden_layers": 32},
    "nano-teacher": {**_NANO, "num_hidden_layers": 11},
    "nano-student": {**_NANO, "num_hidden_layers": 3},
    "nano-expressive-teacher": {**_NANO_EXPRESSIVE, "num_hidden_layers": 11},
    "nano-expressive-student": {**_NANO_EXPRESSIVE, "num_hidden_layers": 3},
}


@strict
class TinyWaveConfig(LlamaConfig):
    """Configuration of the TinyWave language model: Llama, plus the layout of the token ids.

    `model_type` stays "llama" and the saved `architectures` ["LlamaForCausalLM"], so that a saved folder also loads as
    plain Llama wherever remote code is not trusted. The default sizes and ids are those of the published
    `speech-base-2b`; make a family member with [`~TinyWaveConfig.from_preset`].

    Args (in addition to those of `LlamaConfig`):
        text_vocab_size (`int`, default 32000): number of ids of the text tokenizer, specials included.
        text_offset (`int`, default 3): first id of ordinary text; the special ids of the text tokenizer stand before.
        text_marker_id (`int`, default 32000): id of `[Text]`.
        speech_marker_id (`int`, default 32001): id of `[Speech]`.
        unit_offset (`int`, default 32002): id of `[Hu0]`.
        num_units (`int`, default 501): number of phonetic units; ids `unit_offset .. unit_offset + num_units - 1`.
        pitch_offset (`int`, default -1): id of `[Pi0]`; -1 when the model has no pitch stream.
        num_pitch_tokens (`int`, default 0): number of pitch tokens; 0 when the model has no pitch stream.
        style_offset (`int`, default -1): id of `[St0]`; -1 when the model has no style stream.
        num_style_tokens (`int`, default 0): number of style tokens; 0 when the model has no style stream.
        unit_rate (`float`, default 25.0): units per second (Hz) before repeats are dropped.
        unit_clock_rate (`float`, default 24.99): clock (Hz) by which units take their place among pitch and style:
            frame i stands at i / unit_clock_rate seconds. It is just below `unit_rate` because the published encoder
            turns each chunk of 100 seconds into 2,499 units.
        pitch_rate (`float`, default 12.5): pitch tokens per second (Hz) before repeats are dropped.
        style_rate (`float`, default 1.0): style tokens per second (Hz); their repeats are kept.
        pad_token_id (`int`, default 0): a valid id; None or a negative id in an older folder is read as 0.
        weight_format (`str`, *optional*): "int8" for linear layers stored and computed in 8 bits, see
            `quantization_tinywave.py`; such a folder loads as TinyWave only. Default: floating point.
        num_parallel_heads (`int`, default 0): heads that draft tokens after the next one, see
            `parallel_heads_tinywave.py`; plain Llama leaves them out.
        codec_fingerprint (`str`, *optional*): of the codec that made the streams of the last training
            (`SpeechCodec.fingerprint`), so that streams of another codec are refused. Default: unknown.

    Ids that belong to no stream are filler: they exist in the embedding and are never generated.

    Raises `StrictDataclassClassValidationError` when two streams share an id or a stream leaves the vocabulary.
    """

    vocab_size: int = 32512
    num_hidden_layers: int = 10
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    pad_token_id: int | None = 0
    text_vocab_size: int = 32000
    text_offset: int = 3
    text_marker_id: int = 32000
    speech_marker_id: int = 32001
    unit_offset: int = 32002
    num_units: int = 501
    pitch_offset: int = -1
    num_pitch_tokens: int = 0
    style_offset: int = -1
    num_style_tokens: int = 0
    unit_rate: float = 25.0
    unit_clock_rate: float = 24.99
    pitch_rate: float = 12.5
    style_rate: float = 1.0
    weight_format: str | None = None
    num_parallel_heads: int = 0
    codec_fingerprint: str | None = None

    def __post_init__(self, **kwargs):
        # The published SPIRIT-LM folders carry -1, which no batch can be padded with.
        if self.pad_token_id is None or self.pad_token_id < 0:
            self.pad_token_id = 0
        super().__post_init__(**kwargs)

    @property
    def eos_token_ids(self) -> list[int]:
        """Every id that ends a sequence; the first is the one that is written."""
        return [self.eos_token_id] if isinstance(self.eos_token_id, int) else list(self.eos_token_id)

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "TinyWaveConfig":
        """Return the configuration of a family member: a key of `PRESETS`, with fields replaced by `overrides`.

        Raises `ValueError` for an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")
        return cls(**copy.deepcopy({**PRESETS[name], **overrides}))

    def with_streams(self, streams: Collection[str]) -> "TinyWaveConfig":
        """Return a copy that knows only some of its streams of speech.

        The ids keep their places, and those of the streams left out become filler. With the same weights, a model of
        units, pitch and style so becomes one that reads and writes units alone.

        Args:
            streams: some of those that [`~TinyWaveConfig.stream_ranges`] names; units and text always stay.

        Raises `ValueError` for a stream that the model does not have.
        """
        if missing := sorted(set(streams) - self.stream_ranges().keys()):
            raise ValueError(f"the model has no stream {missing[0]!r}; it has {', '.join(self.stream_ranges())}")
        config = copy.deepcopy(self)
        for stream in SPEECH_STREAMS:
            if stream.name in PROSODY_STREAMS and stream.name not in streams:
                setattr(config, stream.size, 0)
                setattr(config, stream.offset, -1)
        return config

    @property
    def prosody_streams(self) -> tuple[str, ...]:
        """Names of the streams of speech that the model has beside its units."""
        return tuple(name for name in PROSODY_STREAMS if name in self.stream_ranges())

    def stream_ranges(self) -> dict[str, range]:
        """Return the ids of each stream the model has: "text", "unit", and "pitch" and "style" where present.

        Special ids, markers and filler belong to no stream.
        """
        ranges = {"text": range(self.text_offset, self.text_vocab_size)}
        for stream in SPEECH_STREAMS:
            first, size = getattr(self, stream.offset), getattr(self, stream.size)
            if size or stream.name not in PROSODY_STREAMS:
                ranges[stream.name] = range(first, first + size)
        return ranges

    def validate_id_layout(self):
        """Part of the `@strict` validation: every stream lies inside the vocabulary and no id has two meanings."""
        if self.num_units < 1:
            raise ValueError(f"num_units is {self.num_units}; a speech language model needs at least one unit")
        for name in (field for stream in SPEECH_STREAMS for field in (stream.rate, stream.clock)):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)} Hz; it must be positive")
        if self.num_parallel_heads < 0:
            raise ValueError(f"num_parallel_heads is {self.num_parallel_heads}; it must be 0 (none) or positive")
        if self.weight_format not in (None, "int8"):
            raise ValueError(f"weight_format is {self.weight_format!r}; expected 'int8', or None for floating point")
        if self.bos_token_id is None or not self.eos_token_id and self.eos_token_id != 0:
            raise ValueError(
                "bos_token_id and eos_token_id must be set: every sequence begins with BOS and ends with EOS"
            )
        for index in (self.pad_token_id, self.bos_token_id, *self.eos_token_ids):
            if not 0 <= index < self.vocab_size:
                raise ValueError(f"special id {index} is outside the vocabulary 0..{self.vocab_size - 1}")
        owned = {
            "special text ids": range(0, self.text_offset),
            "[Text]": range(self.text_marker_id, self.text_marker_id + 1),
            "[Speech]": range(self.speech_marker_id, self.speech_marker_id + 1),
            **self.stream_ranges(),
        }
        previous_name, previous = "", range(0)
        for name, ids in sorted(owned.items(), key=lambda item: (item[1].start, item[1].stop)):
            if ids.start < 0 or ids.stop > self.vocab_size:
                raise ValueError(
                    f"the ids of {name} are {ids.start}..{ids.stop - 1}; they must lie inside the vocabulary "
                    f"0..{self.vocab_size - 1}"
                )
            if ids.start < previous.stop:
                raise ValueError(
                    f"the ids of {previous_name} ({previous.start}..{previous.stop - 1}) and of {name} "
                    f"({ids.start}..{ids.stop - 1}) overlap; give each stream its own range"
                )
            previous_name, previous = name, ids

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary, always with the plain Llama architecture and the whole `auto_map`."""
        output = super().to_dict()
        output["architectures"] = ["LlamaForCausalLM"]
        output["auto_map"] = {
            "AutoConfig": "configuration_tinywave.TinyWaveConfig",
            "AutoModel": "modeling_tinywave.TinyWaveModel",
            "AutoModelForCausalLM": "modeling_tinywave.TinyWaveForCausalLM",
        }
        # Those of a folder that held a codec as well; the next one may not.
        output.pop("custom_pipelines", None)
        return output


@strict
class SpeechEncoderConfig(PreTrainedConfig):
    """Configuration of the speech encoder: a transformer backbone, a layer of it, and a quantizer of that layer.

    Args:
        backbone_config (`dict`, *optional*): the backbone's own configuration, with its `model_type` ("whisper" or
            "hubert").
        layer (`int`, default 4): 1-based transformer layer whose output is quantized.
        pooling (`int`, default 2): backbone frames averaged into one unit.
        num_units (`int`, default 500): number of units; a linear quantizer has one output more, the blank.
        sampling_rate (`int`, default 16000): of the input waveform, in Hz.
        backbone_frame_rate (`float`, default 50.0): output frames of the backbone per second (Hz).
        quantizer (`str`, default "centroids"): "centroids" for the nearest one, "linear" for the largest output of a
            small network whose last output is the blank.
        quantizer_hidden_sizes (`list[int]`, *optional*): hidden sizes of the linear quantizer; none by default. The
            published quantizer has [702, 635].
        attention_window (`int`, *optional*): frames that a backbone frame attends to on each side. Default: all.
        block_units (`int`, *optional*): units that are computed at once, the recording cut into blocks of so many.
            Default: as many as the backbone can take.
        block_context (`int`, default 0): units that a block hears on each side beyond its own.
        weight_bits (`int`, *optional*): 8 when the weights of linear layers and convolutions are stored as integers
            with a scale for each output channel; they are computed with in floating point. Default: not rounded.

    Only with a window or with blocks can speech be encoded while it is being recorded.
    """

    model_type = "tinywave_speech_encoder"

    backbone_config: dict | None = None
    layer: int = 4
    pooling: int = 2
    num_units: int = 500
    sampling_rate: int = 16000
    backbone_frame_rate: float = 50.0
    quantizer: str = "centroids"
    quantizer_hidden_sizes: list[int] | None = None
    attention_window: int | None = None
    block_units: int | None = None
    block_context: int = 0
    weight_bits: int | None = None

    def validate_sizes(self):
        """Part of the `@strict` validation: sizes that would make the first batch fail are refused here."""
        for name in ("layer", "pooling", "num_units", "sampling_rate", "backbone_frame_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.attention_window is not None and self.attention_window < 1:
            raise ValueError(f"attention_window is {self.attention_window}; it must be positive, or None for all")
        if self.weight_bits not in (None, 8):
            raise ValueError(f"weight_bits is {self.weight_bits}; expected 8, or None for no rounding")

    def validate_blocks(self):
        """Part of the `@strict` validation of how a recording is cut."""
        if self.block_units is not None and self.block_units < 1:
            raise ValueError(f"block_units is {self.block_units}; it must be positive, or None for no blocks")
        if self.block_context < 0 or (self.block_context and self.block_units is None):
            raise ValueError(
                f"block_context is {self.block_context} and block_units {self.block_units}; the first must not be "
                "negative, and needs the second"
            )
        if self.block_units is not None and self.attention_window is not None:
            raise ValueError("block_units and attention_window are both set; either makes streams, choose one")

    def validate_quantizer(self):
        """Part of the `@strict` validation of the quantizer's kind and sizes."""
        if self.quantizer not in ("centroids", "linear"):
            raise ValueError(f"quantizer is {self.quantizer!r}; expected 'centroids' or 'linear'")
        if self.quantizer == "centroids" and self.quantizer_hidden_sizes:
            raise ValueError("quantizer_hidden_sizes are those of a linear quantizer; leave them out for centroids")
        if any(size <= 0 for size in self.quantizer_hidden_sizes or ()):
            raise ValueError(f"quantizer_hidden_sizes are {self.quantizer_hidden_sizes}; they must be positive")

    @property
    def frame_rate(self) -> float:
        """Units per second (Hz)."""
        return self.backbone_frame_rate / self.pooling

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary, always with the whole `auto_map`."""
        output = super().to_dict()
        output["architectures"] = ["SpeechEncoder"]
        output["auto_map"] = {
            "AutoConfig": "configuration_tinywave.SpeechEncoderConfig",
            "AutoModel": "speech_encoder_tinywave.SpeechEncoder",
        }
        return output


@strict
class VocoderConfig(PreTrainedConfig):
    """Configuration of the vocoder, which predicts a neural decoder's inputs from speech units.

    Args:
        num_units (`int`, default 500): number of phonetic units.
        unit_rate (`float`, default 25.0): units per second (Hz) before repeats are dropped.
        hidden_size (`int`, default 224): channels of the unit network.
        num_layers (`int`, default 6): convolution layers.
        kernel_size (`int`, default 7): of each convolution, in frames; odd.
        decoder_channels (`int`, default 128): channels of the decoder's input features.
        decoder_frame_rate (`float`, default 40.0): decoder frames per second (Hz).
        num_mel_bins (`int`, default 80): bins of the predicted log-mel spectrogram.
        sampling_rate (`int`, default 24000): of the output waveform, in Hz.
        duration_hidden_size (`int`, default 128): channels of the duration predictor.
        num_pitch_tokens (`int`, default 0): pitch codes that the vocoder hears; 0 for a vocoder without pitch.
        num_style_tokens (`int`, default 0): style codes that the vocoder hears; 0 for a vocoder without style.
        pitch_rate (`float`, default 12.5): pitch codes per second (Hz).
        style_rate (`float`, default 1.0): style codes per second (Hz).
        optional_prosody (`bool`, default False): whether the vocoder was trained to do without pitch or style as well,
            so that it also speaks units alone.
    """

    model_type = "tinywave_vocoder"

    num_units: int = 500
    unit_rate: float = 25.0
    hidden_size: int = 224
    num_layers: int = 6
    kernel_size: int = 7
    decoder_channels: int = 128
    decoder_frame_rate: float = 40.0
    num_mel_bins: int = 80
    sampling_rate: int = 24000
    duration_hidden_size: int = 128
    num_pitch_tokens: int = 0
    num_style_tokens: int = 0
    pitch_rate: float = 12.5
    style_rate: float = 1.0
    optional_prosody: bool = False

    def validate_sizes(self):
        """Part of the `@strict` validation: sizes that would make the first batch fail are refused here."""
        for name in self.__class__.__annotations__.keys() - {"optional_prosody"}:
            is_off = name in ("num_pitch_tokens", "num_style_tokens") and getattr(self, name) == 0
            if getattr(self, name) <= 0 and not is_off:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {self.kernel_size}; it must be odd, so that frames stay in place")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary, always with the whole `auto_map`."""
        output = super().to_dict()
        output["architectures"] = ["Vocoder"]
        output["auto_map"] = {
            "AutoConfig": "configuration_tinywave.VocoderConfig",
            "AutoModel": "vocoder_tinywave.Vocoder",
        }
        return output


@strict
class PitchEncoderConfig(PreTrainedConfig):
    """Configuration of the pitch encoder, a convolutional VQ-VAE on the fundamental frequency.

    The default sizes are those of the published system (arXiv 2402.05755, appendix; architecture of arXiv 2104.00355).

    Args:
        num_codes (`int`, default 64): pitch tokens.
        hidden_size (`int`, default 32): channels of the convolutions.
        num_stages (`int`, default 4): stages of encoder and decoder; each halves or doubles the frame rate.
        num_residual_layers (`int`, default 4): residual layers per stage.
        dilation_growth (`int`, default 3): the dilation of residual layer i of a stage is `dilation_growth ** i`.
        code_size (`int`, default 128): width of a code vector.
        sampling_rate (`int`, default 16000): of the waveform that F0 is extracted from, in Hz.
        hop_length (`int`, default 80): samples per F0 frame.
        f0_extractor (`str`, default "fcpe"): the extractor whose F0 the codes were learnt from, "fcpe" or "swift-f0".
    """

    model_type = "tinywave_pitch_encoder"

    num_codes: int = 64
    hidden_size: int = 32
    num_stages: int = 4
    num_residual_layers: int = 4
    dilation_growth: int = 3
    code_size: int = 128
    sampling_rate: int = 16000
    hop_length: int = 80
    f0_extractor: str = "fcpe"

    def validate_sizes(self):
        """Part of the `@strict` validation: sizes that would make the first batch fail are refused here."""
        for name in self.__class__.__annotations__:
            if name != "f0_extractor" and getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")

    @property
    def f0_rate(self) -> float:
        """F0 frames per second (Hz)."""
        return self.sampling_rate / self.hop_length

    @property
    def frames_per_code(self) -> int:
        """F0 frames that one pitch token covers."""
        return 2**self.num_stages

    @property
    def code_rate(self) -> float:
        """Pitch tokens per second (Hz)."""
        return self.f0_rate / self.frames_per_code

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary, always with the whole `auto_map`."""
        output = super().to_dict()
        output["architectures"] = ["PitchEncoder"]
        output["auto_map"] = {
            "AutoConfig": "configuration_tinywave.PitchEncoderConfig",
            "AutoModel": "pitch_encoder_tinywave.PitchEncoder",
        }
        return output


@strict
class StyleEncoderConfig(PreTrainedConfig):
    """Configuration of the style encoder, a wav2vec 2.0 classifier of windows of one second.

    Args:
        backbone_config (`dict`, *optional*): the backbone's own configuration, with its `model_type` ("wav2vec2").
        num_styles (`int`, default 100): style tokens.
        style_names (`list[str]`, *optional*): a name for each style; the published classes have none.
        projector_size (`int`, default 256): channels that are averaged over a window.
        window_frames (`int`, default 50): backbone frames per style token.
        use_weighted_layer_sum (`bool`, default False): whether the projector reads a learnt mean of all layers instead
            of the last one.
        normalize_level (`bool`, default True): whether each waveform is brought to mean 0 and variance 1, so that
            loudness is no style.
        sampling_rate (`int`, default 16000): of the input waveform, in Hz.
    """

    model_type = "tinywave_style_encoder"

    backbone_config: dict | None = None
    num_styles: int = 100
    style_names: list[str] | None = None
    projector_size: int = 256
    window_frames: int = 50
    use_weighted_layer_sum: bool = False
    normalize_level: bool = True
    sampling_rate: int = 16000

    def validate_sizes(self):
        """Part of the `@strict` validation: sizes that would make the first batch fail are refused here."""
        for name in ("num_styles", "projector_size", "window_frames", "sampling_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.style_names is not None and len(set(self.style_names)) != self.num_styles:
            raise ValueError(f"style_names is {self.style_names}; expected None or {self.num_styles} different names")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary, always with the whole `auto_map`."""
        output = super().to_dict()
        output["architectures"] = ["StyleEncoder"]
        output["auto_map"] = {
            "AutoConfig": "configuration_tinywave.StyleEncoderConfig",
            "AutoModel": "style_encoder_tinywave.StyleEncoder",
        }
        return output


@strict
class HifiGanConfig(PreTrainedConfig):
    """Configuration of the code HiFi-GAN, which turns units, pitch, style and speaker into a waveform.

    The defaults are the published expressive vocoder of SPIRIT-LM (arXiv 2402.05755; the generator is V1 of HiFi-GAN,
    arXiv 2010.05646, with other upsampling rates). The base one has `num_pitch_tokens=0, num_style_tokens=0,
    num_styles=34`.

    Args:
        num_units (`int`, default 501): phonetic units.
        num_pitch_tokens (`int`, default 64): pitch codes; 0 for a vocoder without pitch.
        num_style_tokens (`int`, default 100): style codes that change in time; 0 for a vocoder without them.
        num_styles (`int`, default 0): styles of which an utterance has one; 0 for a vocoder without them.
        num_speakers (`int`, default 4): speakers; 0 for a vocoder of one speaker.
        speaker_names, style_names (`list[str]`, *optional*): a name for each speaker and style.
        embedding_size (`int`, default 128): channels of each embedding; the generator reads all of them side by side.
        initial_channels (`int`, default 512): channels before the first upsampling; each one halves them.
        upsample_rates (`list[int]`, default [5, 4, 4, 4, 2]): their product is the samples of a unit (640).
        upsample_kernel_sizes (`list[int]`, default [11, 8, 8, 8, 4]): each at least its rate, and by an even number.
        resblock_kernel_sizes (`list[int]`, default [3, 7, 11]): of the residual blocks side by side; odd.
        resblock_dilations (`list[int]`, default [1, 3, 5]): of the layers of each residual block.
        duration_hidden_size (`int`, default 128): channels of the duration predictor; 0 for a vocoder without one.
        duration_kernel_size (`int`, default 3): of its convolutions; odd.
        duration_dropout (`float`, default 0.5): in the duration predictor while it is trained.
        sampling_rate (`int`, default 16000): of the waveform, in Hz.
        pitch_rate (`float`, default 12.5): pitch codes per second (Hz).
        style_rate (`float`, default 1.0): style codes per second (Hz).
        weight_norm (`bool`, default True): whether the convolutions keep direction and size of their weights apart, as
            in training; [`HifiGanVocoder.remove_weight_norm`] sets it to False.
    """

    model_type = "tinywave_hifigan"

    num_units: int = 501
    num_pitch_tokens: int = 64
    num_style_tokens: int = 100
    num_styles: int = 0
    num_speakers: int = 4
    speaker_names: list[str] | None = None
    style_names: list[str] | None = None
    embedding_size: int = 128
    initial_channels: int = 512
    upsample_rates: list[int] | tuple[int, ...] = (5, 4, 4, 4, 2)
    upsample_kernel_sizes: list[int] | tuple[int, ...] = (11, 8, 8, 8, 4)
    resblock_kernel_sizes: list[int] | tuple[int, ...] = (3, 7, 11)
    resblock_dilations: list[int] | tuple[int, ...] = (1, 3, 5)
    duration_hidden_size: int = 128
    duration_kernel_size: int = 3
    duration_dropout: float = 0.5
    sampling_rate: int = 16000
    pitch_rate: float = 12.5
    style_rate: float = 1.0
    weight_norm: bool = True

    def __post_init__(self, **kwargs):
        for name in ("upsample_rates", "upsample_kernel_sizes", "resblock_kernel_sizes", "resblock_dilations"):
            setattr(self, name, list(getattr(self, name)))
        super().__post_init__(**kwargs)

    @property
    def samples_per_unit(self) -> int:
        """Waveform samples that one frame of a unit covers (640)."""
        return math.prod(self.upsample_rates)

    @property
    def unit_rate(self) -> float:
        """Units per second (Hz) before repeats are dropped (25)."""
        return self.sampling_rate / self.samples_per_unit

    def validate_sizes(self):
        """Part of the `@strict` validation: sizes that would make the first batch fail are refused here."""
        positive = ("num_units", "embedding_size", "duration_kernel_size", "sampling_rate", "pitch_rate", "style_rate")
        for name in (*positive, "upsample_rates", "resblock_kernel_sizes", "resblock_dilations"):
            values = getattr(self, name)
            if min(values, default=0) <= 0 if isinstance(values, list) else values <= 0:
                raise ValueError(f"{name} is {values}; it must be positive")
        counts = ("num_pitch_tokens", "num_style_tokens", "num_styles", "num_speakers", "duration_hidden_size")
        for name in counts:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 (off) or positive")
        if self.num_styles and self.num_style_tokens:
            raise ValueError("found both num_styles and num_style_tokens; a style either changes in time or does not")
        even = [size for size in (*self.resblock_kernel_sizes, self.duration_kernel_size) if size % 2 == 0]
        if even:
            raise ValueError(f"found a kernel size of {even[0]}; kernels must be odd, so that samples stay in place")

    def validate_upsampling(self):
        """Part of the `@strict` validation: each stage multiplies the length by its rate exactly."""
        if len(self.upsample_rates) != len(self.upsample_kernel_sizes):
            raise ValueError(
                f"found {len(self.upsample_rates)} upsample_rates and {len(self.upsample_kernel_sizes)} "
                "upsample_kernel_sizes; expected as many of both"
            )
        for rate, size in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            if size < rate or (size - rate) % 2:
                raise ValueError(
                    f"found an upsampling kernel of {size} for the rate {rate}; it must be {rate}, or larger by an "
                    "even number"
                )
        if self.initial_channels <= 0 or self.initial_channels % 2 ** len(self.upsample_rates):
            raise ValueError(
                f"initial_channels is {self.initial_channels}; it must be a multiple of "
                f"{2 ** len(self.upsample_rates)}, because each of {len(self.upsample_rates)} stages halves it"
            )

    def validate_names(self):
        """Part of the `@strict` validation: a name for each speaker and style, or none at all."""
        for names, count in (
            (self.speaker_names, self.num_speakers),
            (self.style_names, self.num_styles or self.num_style_tokens),
        ):
            if names is not None and len(names) != count:
                raise ValueError(f"found {len(names)} names for {count} speakers or styles; expected one for each")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary, always with the whole `auto_map`."""
        output = super().to_dict()
        output["architectures"] = ["HifiGanVocoder"]
        output["auto_map"] = {
            "AutoConfig": "configuration_tinywave.HifiGanConfig",
            "AutoModel": "hifigan_tinywave.HifiGanVocoder",
        }
        return output
