"""Speech encoders and whole codecs from folders.

A codec folder holds a folder for each of its models: `speech_encoder`, and where they are there `pitch_encoder`,
`style_encoder` and `vocoder`. It is what `tinywave convert` makes of a published codec and what the package ships.
"""

import os
from collections.abc import Collection
from pathlib import Path

from safetensors.torch import save_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..codec_tinywave import SpeechCodec, load_vocoder
from ..configuration_tinywave import PROSODY_STREAMS, SpeechEncoderConfig
from ..loading_tinywave import check_finite, check_model_type, check_stored_types, load_pretrained
from ..pitch_encoder_tinywave import PitchEncoder
from ..speech_encoder_tinywave import QUANTIZER_FILE, SpeechEncoder
from ..style_encoder_tinywave import StyleEncoder
from ..vocoder_tinywave import Vocoder
from .f0_extraction import load_f0_extractor
from .hibari_voice import STYLES, HibariDecoder
from .whisper_weights import WHISPER_BASE_CONFIG, load_whisper_encoder


def new_speech_encoder(num_units: int = 500, layer: int = 4) -> SpeechEncoder:
    """Return a speech encoder on Whisper base without centroids; [`fit_kmeans`] makes those.

    Args:
        num_units (`int`, default 500): number of centroids.
        layer (`int`, default 4): 1-based layer of Whisper base whose output is quantized. Of its six layers the fourth
            tells phones apart best.

    Raises `ModuleNotFoundError` when the weight packages are missing.
    """
    config = SpeechEncoderConfig(backbone_config=dict(WHISPER_BASE_CONFIG), num_units=num_units, layer=layer)
    encoder = SpeechEncoder(config)
    encoder.backbone.load_state_dict(load_whisper_encoder(layer))
    return encoder.eval()


def load_speech_encoder(folder: str | os.PathLike) -> SpeechEncoder:
    """Load a speech encoder, complete or centroids only.

    Args:
        folder: what `save_pretrained` wrote (config and weights), or what `save_quantizer` wrote (config and
            centroids); the backbone of the latter comes from the installed Whisper base packages.

    Raises `ValueError` when the folder holds neither, `ModuleNotFoundError` when the weight packages are missing.
    """
    folder = Path(folder)
    if (folder / SAFE_WEIGHTS_NAME).is_file() or (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        return load_pretrained(SpeechEncoder, folder)
    if not (folder / QUANTIZER_FILE).is_file():
        raise ValueError(
            f"{folder} is not a speech encoder; expected config.json with {SAFE_WEIGHTS_NAME} or {QUANTIZER_FILE}"
        )
    check_model_type(folder, SpeechEncoder)
    config = SpeechEncoderConfig.from_pretrained(folder)
    encoder = new_speech_encoder(config.num_units, config.layer)
    encoder.config.pooling = config.pooling
    encoder.load_quantizer(folder)
    check_stored_types([folder / QUANTIZER_FILE], encoder.quantizer, folder / QUANTIZER_FILE)
    check_finite(encoder.quantizer, folder / QUANTIZER_FILE)
    return encoder


def load_codec(
    folder: str | os.PathLike,
    streams: Collection[str] | None = None,
    *,
    speech_encoder: str | os.PathLike | None = None,
    vocoder: str | os.PathLike | None = None,
    griffin_lim: bool = False,
) -> SpeechCodec:
    """Load a codec folder for use.

    Args:
        folder: with `speech_encoder` and, where they are there, `pitch_encoder`, `style_encoder` and `vocoder`.
        streams (*optional*): those to make, as `TinyWaveConfig.stream_ranges` names them; others ("text") are left to
            the language model. Default: all that the folder has an encoder for.
        speech_encoder, vocoder (*optional*): other folders for these two.
        griffin_lim (`bool`, default False): let a [`Vocoder`] speak through the metallic Griffin-Lim fallback, which
            needs no package, instead of hibari's neural decoder.

    Raises `ValueError` for a folder without speech encoder and for a stream that it has no encoder for,
    `ModuleNotFoundError` where a package that an encoder or the decoder needs is missing.
    """
    folder = Path(folder)
    present = {name for name in PROSODY_STREAMS if (folder / f"{name}_encoder" / "config.json").is_file()}
    wanted = present if streams is None else set(streams) & set(PROSODY_STREAMS)
    if missing := sorted(wanted - present):
        raise ValueError(f"{folder} has no encoder for {' and '.join(missing)}; expected {missing[0]}_encoder in it")
    pitch_encoder = style_encoder = f0_extractor = decoder = None
    if "pitch" in wanted:
        pitch_encoder = load_pretrained(PitchEncoder, folder / "pitch_encoder")
        f0_extractor = load_f0_extractor(pitch_encoder.config.f0_extractor)
    if "style" in wanted:
        style_encoder = load_pretrained(StyleEncoder, folder / "style_encoder")
    if vocoder is None and (folder / "vocoder" / "config.json").is_file():
        vocoder = folder / "vocoder"
    speaker = None if vocoder is None else load_vocoder(vocoder)
    if isinstance(speaker, Vocoder) and not griffin_lim:
        style_names = None if style_encoder is None else style_encoder.config.style_names
        decoder = HibariDecoder(style_names or STYLES).decode
    return SpeechCodec(
        load_speech_encoder(speech_encoder or folder / "speech_encoder"),
        speaker,
        decoder,
        pitch_encoder=pitch_encoder,
        style_encoder=style_encoder,
        f0_extractor=f0_extractor,
    )


def save_encoders(codec: SpeechCodec, folder: str | os.PathLike) -> None:
    """Write the encoders of a codec, without code and cards, where [`load_codec`] finds them."""
    for name in ("speech_encoder", "pitch_encoder", "style_encoder"):
        model = getattr(codec, name)
        if model is not None:
            model.config.save_pretrained(Path(folder) / name)
            state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
            save_file(state, Path(folder) / name / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
