"""`tinywave fit-units nano/units --corpus outputs/corpus --output-dir outputs/speech_encoder`"""

from ..data.codec_loading import new_speech_encoder
from ..data.unit_extraction import fit_kmeans, sample_features
from .recipe import read_recipe


def add_arguments(parser):
    parser.add_argument("recipe", help="unit recipe: a YAML file or the name of a packaged one")
    parser.add_argument("--corpus", required=True, help="folder that `tinywave prepare` wrote")
    parser.add_argument("--output-dir", required=True, help="folder of the centroids")
    parser.add_argument("--num-processes", type=int, default=2, help="worker processes")


def run(arguments) -> int:
    recipe = read_recipe(arguments.recipe)
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
