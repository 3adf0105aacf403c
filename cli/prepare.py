"""`tinywave prepare nano/corpus --output-dir outputs/corpus`"""

import tempfile

from ..data.corpus import prepare_corpus, verify_splits
from ..data.debian_recordings import debian_recordings
from ..data.recordings import folders_of_recipe, prepare_recordings
from ..data.text_items import text_items
from .recipe import read_recipe


def add_arguments(parser):
    parser.add_argument(
        "recipe",
        help="corpus recipe: a YAML file or the name of a packaged one, with documents to speak or with recordings",
    )
    parser.add_argument("--output-dir", required=True, help="folder of the parquet shards")
    parser.add_argument("--num-processes", type=int, default=2, help="worker processes")


def run(arguments) -> int:
    recipe = read_recipe(arguments.recipe)
    options = {"output_folder": arguments.output_dir, "num_processes": arguments.num_processes}
    if "recordings" in recipe:
        prepare_recordings(folders_of_recipe(recipe), **options)
    elif "debian_packages" in recipe:
        with tempfile.TemporaryDirectory() as folder:
            prepare_recordings(debian_recordings(recipe["debian_packages"], folder), **options)
    else:
        prepare_corpus(text_items(recipe), **options)
    verify_splits(arguments.output_dir)
    print(arguments.output_dir)
    return 0
