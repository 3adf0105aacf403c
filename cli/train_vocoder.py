"""`tinywave train-vocoder nano/vocoder --codec outputs/codec --output-dir outputs/codec/vocoder`"""

from pathlib import Path

from ..configuration_tinywave import PROSODY_STREAMS, VocoderConfig
from ..data.kokoro_voice import TRAIN_VOICES, KokoroVoice
from ..data.vocoder_features import (
    ProsodyReader,
    VocoderSpeaker,
    prepare_vocoder_features,
    sample_vocoder_items,
    sample_vocoder_texts,
)
from ..stages.recipes import VocoderRecipe
from ..training.checkpoints import last_checkpoint, save_in_bfloat16
from ..training.vocoder_training import VocoderTrainingArguments, train_vocoder
from .loading import add_codec_arguments, open_codec
from .recipe import RecipeArgument
from .runs import start_run

RECIPE = RecipeArgument("vocoder recipe", VocoderRecipe, training=VocoderTrainingArguments, model=VocoderConfig)


def add_arguments(parser):
    RECIPE.declare(parser)
    add_codec_arguments(parser, speaks=False)
    parser.add_argument("--output-dir", required=True, help="folder of the vocoder, its features and checkpoints")


def run(arguments) -> int:
    recipe = RECIPE.read(arguments)
    output = Path(arguments.output_dir)
    inputs = {"codec": _encoder_folders(arguments, recipe["streams"])}
    record = start_run(output, "train-vocoder", recipe, inputs)
    if record is None:
        return 0
    texts = sample_vocoder_texts(recipe["num_story_sentences"], recipe["seed"])
    share = recipe["kokoro_share"]
    items = sample_vocoder_items(texts, TRAIN_VOICES, share, recipe["seed"])
    speaker = VocoderSpeaker(KokoroVoice() if share else None)
    codec = open_codec(arguments, recipe["streams"])
    style_names = [] if codec.style_encoder is None else codec.style_encoder.config.style_names
    prosody = None
    if codec.pitch_encoder is not None:
        prosody = ProsodyReader.from_encoder(codec.pitch_encoder, follows_style=bool(style_names))
    prepare_vocoder_features(items, codec.speech_encoder, speaker, output / "features", prosody=prosody)
    vocoder = train_vocoder(
        output / "features",
        VocoderTrainingArguments(output_dir=str(output), seed=recipe["seed"], **recipe["training"]),
        VocoderConfig(
            num_units=codec.speech_encoder.num_units,
            num_pitch_tokens=prosody.num_codes if prosody else 0,
            num_style_tokens=len(style_names),
            **recipe["model"],
        ),
        resume_from_checkpoint=last_checkpoint(output),
        style_names=style_names,
    )
    save_in_bfloat16(vocoder, output)
    record.finish()
    print(output)
    return 0


def _encoder_folders(arguments, streams: list[str]) -> list[Path]:
    """The folders of the encoders whose streams the vocoder reads."""
    codec = Path(arguments.codec)
    prosody = [codec / f"{name}_encoder" for name in streams if name in PROSODY_STREAMS]
    return [Path(arguments.speech_encoder or codec / "speech_encoder"), *prosody]
