"""`tinywave train-heads nano/parallel_heads --model outputs/out --units outputs/units --output-dir outputs/heads`"""

from transformers import set_seed

from ..loading_tinywave import load_pretrained
from ..modeling_tinywave import TinyWaveForCausalLM
from ..stages.recipes import ParallelHeadsRecipe
from ..training.parallel_heads_training import ParallelHeadsArguments, train_parallel_heads
from .loading import load_for_training
from .recipe import RecipeArgument
from .runs import start_run
from .shipped import TEACHER
from .train import is_packed, make_dataset

RECIPE = RecipeArgument("recipe of the heads", ParallelHeadsRecipe, training=ParallelHeadsArguments)


def add_arguments(parser):
    RECIPE.declare(parser)
    parser.add_argument("--model", required=True, help="folder of the model that gets heads; it is not changed")
    parser.add_argument("--teacher", default=str(TEACHER), help="folder of the model that teaches them")
    parser.add_argument("--units", required=True, help="folder that `tinywave extract-units` wrote")
    parser.add_argument("--output-dir", required=True, help="folder of the model with heads, and its checkpoints")


def run(arguments) -> int:
    """Train parallel heads for a model, and save it with them."""
    recipe = RECIPE.read(arguments)
    if is_packed(recipe):
        raise ValueError("Found `packing: true`; a head would foretell the next document of a row. Leave it out.")
    inputs = {"model": arguments.model, "teacher": arguments.teacher, "units": arguments.units}
    record = start_run(arguments.output_dir, "train-heads", recipe, inputs)
    if record is None:
        return 0
    set_seed(recipe["seed"])
    model = load_pretrained(
        TinyWaveForCausalLM,
        arguments.model,
        may_be_missing=["parallel_heads."],
        dtype="float32",
        num_parallel_heads=recipe["num_parallel_heads"],
    )
    # A teacher of more streams, such as the shipped one, teaches those of the student.
    streams = [name for name in model.config.stream_ranges() if name != "text"]
    teacher, tokenizer = load_for_training(arguments.teacher, streams)
    trainer = train_parallel_heads(
        model,
        teacher,
        make_dataset(recipe, arguments.units, "train", model.config, tokenizer),
        ParallelHeadsArguments(output_dir=arguments.output_dir, seed=recipe["seed"], **recipe["training"]),
        tokenizer=tokenizer,
    )
    if trainer.args.should_save:
        record.finish()
    print(arguments.output_dir)
    return 0
