"""`tinywave train-speech-encoder nano/speech_encoder --corpus outputs/corpus --units outputs/units --output-dir D`"""

from pathlib import Path

from ..configuration_tinywave import SpeechEncoderConfig
from ..data.codec_loading import load_speech_encoder
from ..data.unit_extraction import load_unit_utterances
from ..speech_encoder_tinywave import SpeechEncoder
from ..training.checkpoints import save_in_bfloat16
from ..training.speech_encoder_training import (
    SpeechEncoderTrainingArguments,
    train_speech_encoder,
    untrained_speech_encoder,
)
from .recipe import read_recipe


def add_arguments(parser):
    parser.add_argument("recipe", help="speech encoder recipe: a YAML file or the name of a packaged one")
    parser.add_argument("--corpus", nargs="+", required=True, help="folders that `tinywave prepare` wrote")
    parser.add_argument("--units", nargs="+", required=True, help="folders of their units, in the same order")
    parser.add_argument("--teacher", help="folder of the encoder of these units; where the recipe compares features")
    parser.add_argument("--init-from", help="folder of a speech encoder to go on from, in place of the recipe's own")
    parser.add_argument("--output-dir", required=True, help="folder of the speech encoder and its checkpoints")


def run(arguments) -> int:
    recipe = read_recipe(arguments.recipe)
    output = Path(arguments.output_dir)
    utterances = load_unit_utterances(arguments.corpus, arguments.units, split="train")
    encoder = train_speech_encoder(
        _initial_encoder(recipe, arguments.init_from),
        utterances,
        SpeechEncoderTrainingArguments(output_dir=str(output), seed=recipe["seed"], **recipe["training"]),
        teacher=load_speech_encoder(arguments.teacher) if arguments.teacher else None,
    )
    save_in_bfloat16(encoder, output)
    print(output)
    return 0


def _initial_encoder(recipe: dict, init_from: str | None) -> SpeechEncoder:
    if init_from:
        return load_speech_encoder(init_from).float()
    if "encoder" not in recipe:
        raise ValueError("The recipe has no encoder: it goes on from a trained one, give its folder as --init-from.")
    return untrained_speech_encoder(SpeechEncoderConfig(**recipe["encoder"]), recipe["seed"])
