"""`tinywave train-style nano/style --corpus outputs/corpus --output-dir outputs/style_encoder`"""

from pathlib import Path

from ..configuration_tinywave import StyleEncoderConfig
from ..stages.recipes import StyleRecipe
from ..training.checkpoints import last_checkpoint, save_in_bfloat16
from ..training.style_training import StyleTrainingArguments, load_style_examples, style_accuracy, train_style
from .recipe import RecipeArgument
from .runs import start_run

RECIPE = RecipeArgument("style recipe", StyleRecipe, training=StyleTrainingArguments, model=StyleEncoderConfig)


def add_arguments(parser):
    RECIPE.declare(parser)
    parser.add_argument("--corpus", required=True, nargs="+", help="folders that `tinywave prepare` wrote")
    parser.add_argument("--output-dir", required=True, help="folder of the style encoder and its checkpoints")


def run(arguments) -> int:
    recipe = RECIPE.read(arguments)
    output = Path(arguments.output_dir)
    inputs = {"corpus": arguments.corpus}
    record = start_run(output, "train-style", recipe, inputs)
    if record is None:
        return 0
    config = StyleEncoderConfig(**recipe["model"])
    hours, seed = recipe["hours_per_style"], recipe["seed"]
    style_encoder = train_style(
        load_style_examples(arguments.corpus, config.style_names, "train", hours, seed),
        StyleTrainingArguments(output_dir=str(output), seed=seed, **recipe["training"]),
        config,
        resume_from_checkpoint=last_checkpoint(output),
    )
    save_in_bfloat16(style_encoder, output)
    record.finish()
    held_out = load_style_examples(arguments.corpus, config.style_names, "validation", hours, seed)
    accuracy = style_accuracy(style_encoder, held_out)
    print(f"unheard text: {accuracy['window']:.3f} of windows right, {accuracy['utterance']:.3f} of utterances")
    print(output)
    return 0
