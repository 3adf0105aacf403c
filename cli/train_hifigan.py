"""`tinywave train-hifigan nano/hifigan --corpus outputs/corpus --units outputs/units --output-dir outputs/hifigan`"""

from pathlib import Path

from ..configuration_tinywave import HifiGanConfig
from ..data.hifigan_segments import read_voices
from ..stages.recipes import HifiGanRecipe
from ..training.checkpoints import last_checkpoint, save_in_bfloat16
from ..training.hifigan_training import HifiGanTrainingArguments, train_hifigan
from .recipe import RecipeArgument
from .runs import start_run

RECIPE = RecipeArgument("HiFi-GAN recipe", HifiGanRecipe, training=HifiGanTrainingArguments, model=HifiGanConfig)


def add_arguments(parser):
    RECIPE.declare(parser)
    parser.add_argument("--corpus", required=True, help="folder that `tinywave prepare` wrote")
    parser.add_argument("--units", required=True, help="folder that `tinywave extract-units` made of it")
    parser.add_argument("--output-dir", required=True, help="folder of the vocoder and its checkpoints")


def run(arguments) -> int:
    """Train on every voice of the corpus, save the vocoder for use (no weight norm, bfloat16) and print its folder."""
    recipe = RECIPE.read(arguments)
    output = Path(arguments.output_dir)
    inputs = {"corpus": arguments.corpus, "units": arguments.units}
    record = start_run(output, "train-hifigan", recipe, inputs)
    if record is None:
        return 0
    voices = read_voices(arguments.units)
    vocoder = train_hifigan(
        arguments.corpus,
        arguments.units,
        HifiGanTrainingArguments(output_dir=str(output), seed=recipe["seed"], **recipe["training"]),
        HifiGanConfig(num_speakers=len(voices), speaker_names=voices, **recipe["model"]),
        resume_from_checkpoint=last_checkpoint(output),
    )
    save_in_bfloat16(vocoder, output)
    record.finish()
    print(output)
    return 0
