"""`tinywave prepare nano/corpus --output-dir outputs/corpus`"""

from ..data.corpus import prepare_corpus, verify_splits
from ..data.text_items import text_items
from .recipe import read_recipe


def add_arguments(parser):
    parser.add_argument("recipe", help="corpus recipe: a YAML file or the name of a packaged one")
    parser.add_argument("--output-dir", required=True, help="folder of the parquet shards")
    parser.add_argument("--num-processes", type=int, default=2, help="worker processes")


def run(arguments) -> int:
    folder = prepare_corpus(
        text_items(read_recipe(arguments.recipe)), arguments.output_dir, num_processes=arguments.num_processes
    )
    verify_splits(folder)
    print(folder)
    return 0
