"""`tinywave fit-units nano/units --corpus outputs/corpus --output-dir outputs/speech_encoder`"""

from ..data.codec_loading import new_speech_encoder
from ..data.unit_extraction import fit_kmeans, sample_features
from ..stages.recipes import UnitsRecipe
from .argument_types import NUM_PROCESSES
from .recipe import RecipeArgument

RECIPE = RecipeArgument("unit recipe", UnitsRecipe)


def add_arguments(parser):
    RECIPE.declare(parser)
    parser.add_argument("--corpus", required=True, help="folder that `tinywave prepare` wrote")
    parser.add_argument("--output-dir", required=True, help="folder of the centroids")
    parser.add_argument("--num-processes", type=NUM_PROCESSES, default=2, help="worker processes")


def run(arguments) -> int:
    recipe = RECIPE.read(arguments)
    encoder = new_speech_encoder(recipe["num_units"], recipe["layer"])
    features = sample_features(
        arguments.corpus,
        encoder,
        max_frames=recipe["max_frames"],
        seed=recipe["seed"],
        num_processes=arguments.num_processes,
    )
    encoder.quantizer = fit_kmeans(features, recipe["num_units"], recipe["seed"])
    encoder.save_quantizer(arguments.output_dir)
    print(arguments.output_dir)
    return 0
