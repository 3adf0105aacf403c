"""`tinywave train-vocoder nano/vocoder --output-dir outputs/vocoder`"""

from pathlib import Path

from ..data.kokoro_voice import TRAIN_VOICES, KokoroVoice
from ..data.unit_extraction import load_speech_encoder
from ..data.vocoder_features import (
    VocoderSpeaker,
    prepare_vocoder_features,
    sample_vocoder_items,
    sample_vocoder_texts,
)
from ..training.checkpoints import last_checkpoint, save_in_bfloat16
from ..training.vocoder_training import VocoderTrainingArguments, train_vocoder
from .recipe import read_recipe
from .shipped import SPEECH_ENCODER


def add_arguments(parser):
    parser.add_argument("recipe", help="vocoder recipe: a YAML file or the name of a packaged one")
    parser.add_argument("--speech-encoder", default=str(SPEECH_ENCODER), help="folder of the speech encoder")
    parser.add_argument("--output-dir", required=True, help="folder of the vocoder, its features and checkpoints")


def run(arguments) -> int:
    recipe = read_recipe(arguments.recipe)
    output = Path(arguments.output_dir)
    texts = sample_vocoder_texts(recipe["num_story_sentences"], recipe["seed"])
    share = recipe["kokoro_share"]
    items = sample_vocoder_items(texts, TRAIN_VOICES, share, recipe["seed"])
    speaker = VocoderSpeaker(KokoroVoice() if share else None)
    prepare_vocoder_features(items, load_speech_encoder(arguments.speech_encoder), speaker, output / "features")
    vocoder = train_vocoder(
        output / "features",
        VocoderTrainingArguments(output_dir=str(output), seed=recipe["seed"], **recipe["training"]),
        resume_from_checkpoint=last_checkpoint(output),
    )
    save_in_bfloat16(vocoder, output)
    print(output)
    return 0
