"""`tinywave train-speech-encoder nano/speech_encoder --corpus C --units U --teacher T --output-dir D`"""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch

from ..configuration_tinywave import SpeechEncoderConfig
from ..data.codec_loading import load_speech_encoder
from ..data.unit_extraction import UnitUtterance, load_unit_utterances
from ..speech_encoder_tinywave import SpeechEncoder
from ..stages.recipes import SpeechEncoderRecipe
from ..training.checkpoints import save_in_bfloat16
from ..training.speech_encoder_pruning import prune_speech_encoder
from ..training.speech_encoder_training import (
    SpeechEncoderTrainingArguments,
    train_speech_encoder,
    untrained_speech_encoder,
)
from .recipe import RecipeArgument
from .runs import start_run

RECIPE = RecipeArgument(
    "speech encoder recipe", SpeechEncoderRecipe, training=SpeechEncoderTrainingArguments, encoder=SpeechEncoderConfig
)


def add_arguments(parser):
    RECIPE.declare(parser)
    parser.add_argument("--corpus", nargs="+", required=True, help="folders that `tinywave prepare` wrote")
    parser.add_argument("--units", nargs="+", required=True, help="folders of their units, in the same order")
    parser.add_argument("--teacher", help="folder of the encoder of these units, where the recipe cuts or compares it")
    parser.add_argument("--init-from", help="folder of a speech encoder to go on from, in place of the recipe's own")
    parser.add_argument("--output-dir", required=True, help="folder of the speech encoder and its checkpoints")


def run(arguments) -> int:
    recipe = RECIPE.read(arguments)
    if recipe.get("weight_bits", 8) != 8:
        raise ValueError(f"Found weight_bits={recipe['weight_bits']}; expected 8, or none for weights in bfloat16.")
    output = Path(arguments.output_dir)
    inputs = {
        "corpus": arguments.corpus,
        "units": arguments.units,
        "teacher": arguments.teacher,
        "init_from": arguments.init_from,
    }
    record = start_run(output, "train-speech-encoder", recipe, inputs)
    if record is None:
        return 0
    utterances = load_unit_utterances(arguments.corpus, arguments.units, split="train")
    teacher = load_speech_encoder(arguments.teacher) if arguments.teacher else None
    encoder = train_speech_encoder(
        _initial_encoder(recipe, arguments.init_from, teacher, utterances),
        utterances,
        SpeechEncoderTrainingArguments(output_dir=str(output), seed=recipe["seed"], **recipe["training"]),
        teacher=teacher,
    )
    if "weight_bits" in recipe:
        encoder.round_weights()
    save_in_bfloat16(encoder, output)
    record.finish()
    print(output)
    return 0


def _initial_encoder(
    recipe: dict, init_from: str | None, teacher: SpeechEncoder | None, utterances: Sequence[UnitUtterance]
) -> SpeechEncoder:
    if init_from:
        encoder = load_speech_encoder(init_from).float()
        encoder.unround_weights()
        return encoder
    if "encoder" not in recipe:
        raise ValueError("The recipe has no encoder: it goes on from a trained one, give its folder as --init-from.")
    config = SpeechEncoderConfig(**recipe["encoder"])
    if "pruning_utterances" not in recipe:
        return untrained_speech_encoder(config, recipe["seed"])
    if teacher is None:
        raise ValueError("The recipe cuts the encoder from that of the units; give its folder as --teacher.")
    number = min(recipe["pruning_utterances"], len(utterances))
    chosen = Random(recipe["seed"]).sample(list(utterances), number)
    return prune_speech_encoder(
        teacher, config, [torch.from_numpy(item.read_samples(0, item.num_samples)) for item in chosen]
    )
