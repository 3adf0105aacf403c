"""`tinywave prepare nano/corpus --output-dir outputs/corpus`"""

import tempfile

from ..data.corpus import prepare_corpus, verify_splits
from ..data.debian_recordings import debian_recordings
from ..data.recordings import folders_of_recipe, prepare_recordings
from ..data.text_items import text_items
from ..stages.recipes import DebianCorpusRecipe, RecordedCorpusRecipe, SpokenCorpusRecipe
from .argument_types import NUM_PROCESSES
from .recipe import RecipeArgument


def _corpus_recipe(values: dict) -> type:
    """The class of a corpus recipe, by what it makes the corpus of."""
    kinds = {"recordings": RecordedCorpusRecipe, "debian_packages": DebianCorpusRecipe}
    return next((kind for name, kind in kinds.items() if name in values), SpokenCorpusRecipe)


RECIPE = RecipeArgument("corpus recipe, with documents to speak or with recordings", _corpus_recipe)


def add_arguments(parser):
    RECIPE.declare(parser)
    parser.add_argument("--output-dir", required=True, help="folder of the parquet shards")
    parser.add_argument("--num-processes", type=NUM_PROCESSES, default=2, help="worker processes")


def run(arguments) -> int:
    recipe = RECIPE.read(arguments)
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
