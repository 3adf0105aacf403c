"""`tinywave build-suites nano/suites --output-dir outputs/suites`"""

from pathlib import Path

from ..data.codec_loading import load_speech_encoder
from ..eval.builders import build_suite
from .recipe import read_recipe
from .shipped import SPEECH_ENCODER


def add_arguments(parser):
    parser.add_argument("recipe", help="suite recipe: a YAML file or the name of a packaged one")
    parser.add_argument("--speech-encoder", default=str(SPEECH_ENCODER), help="folder of the speech encoder")
    parser.add_argument("--output-dir", required=True, help="folder of the manifests; speech goes into its `speech`")
    parser.add_argument("--num-processes", type=int, default=2, help="worker processes that speak")


def run(arguments) -> int:
    recipe = read_recipe(arguments.recipe)
    encoder = load_speech_encoder(arguments.speech_encoder)
    output = Path(arguments.output_dir)
    for name, num_pairs in recipe["suites"].items():
        build_suite(
            name,
            num_pairs,
            recipe["seed"],
            output / f"{name}.parquet",
            encode=encoder.encode,
            encoder=encoder.fingerprint(),
            corpus_folder=output / "speech" / name,
            num_processes=arguments.num_processes,
        )
    print(output)
    return 0
