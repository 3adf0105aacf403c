"""`tinywave build-suites nano/suites --output-dir outputs/suites`"""

from pathlib import Path

from ..eval.builders import build_suite
from ..stages.recipes import SuitesRecipe
from .argument_types import NUM_PROCESSES
from .loading import add_codec_arguments, add_streams_argument, open_codec
from .recipe import RecipeArgument

RECIPE = RecipeArgument("suite recipe", SuitesRecipe)


def add_arguments(parser):
    RECIPE.declare(parser)
    add_codec_arguments(parser, speaks=False)
    add_streams_argument(parser)
    parser.add_argument("--output-dir", required=True, help="folder of the manifests; speech goes into its `speech`")
    parser.add_argument("--num-processes", type=NUM_PROCESSES, default=2, help="worker processes that speak")


def run(arguments) -> int:
    recipe = RECIPE.read(arguments)
    codec = open_codec(arguments, arguments.streams)
    output = Path(arguments.output_dir)
    for name, num_pairs in recipe["suites"].items():
        build_suite(
            name,
            num_pairs,
            recipe["seed"],
            output / f"{name}.parquet",
            codec=codec,
            corpus_folder=output / "speech" / name,
            num_processes=arguments.num_processes,
        )
    print(output)
    return 0
