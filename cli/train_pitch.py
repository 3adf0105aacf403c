"""`tinywave train-pitch nano/pitch --corpus outputs/corpus --output-dir outputs/pitch_encoder`"""

from pathlib import Path

from ..configuration_tinywave import PitchEncoderConfig
from ..data.f0_extraction import load_f0, prepare_f0
from ..stages.recipes import PitchRecipe
from ..training.checkpoints import last_checkpoint, save_in_bfloat16
from ..training.pitch_training import PitchTrainingArguments, f0_correlation, train_pitch
from .recipe import RecipeArgument
from .runs import start_run

RECIPE = RecipeArgument("pitch recipe", PitchRecipe, training=PitchTrainingArguments, model=PitchEncoderConfig)


def add_arguments(parser):
    RECIPE.declare(parser)
    parser.add_argument("--corpus", required=True, nargs="+", help="folders that `tinywave prepare` wrote")
    parser.add_argument("--output-dir", required=True, help="folder of the pitch encoder, its F0 and checkpoints")


def run(arguments) -> int:
    recipe = RECIPE.read(arguments)
    output = Path(arguments.output_dir)
    inputs = {"corpus": arguments.corpus}
    record = start_run(output, "train-pitch", recipe, inputs)
    if record is None:
        return 0
    config = PitchEncoderConfig(**recipe["model"])
    prepare_f0(arguments.corpus, output / "f0", config.f0_extractor, recipe["hours"], recipe["seed"])
    pitch_encoder = train_pitch(
        output / "f0",
        PitchTrainingArguments(output_dir=str(output), seed=recipe["seed"], **recipe["training"]),
        config,
        resume_from_checkpoint=last_checkpoint(output),
    )
    save_in_bfloat16(pitch_encoder, output)
    record.finish()
    correlation = f0_correlation(pitch_encoder, load_f0(output / "f0", "validation"))
    print(f"F0 of unheard text against what its codes decode to: correlation {correlation:.3f}")
    print(output)
    return 0
