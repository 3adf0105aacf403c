"""`tinywave extract-units --corpus outputs/corpus --output-dir outputs/units`"""

from ..data.unit_extraction import extract_units, load_speech_encoder
from .shipped import SPEECH_ENCODER


def add_arguments(parser):
    parser.add_argument("--corpus", required=True, help="folder that `tinywave prepare` wrote")
    parser.add_argument("--speech-encoder", default=str(SPEECH_ENCODER), help="folder of the speech encoder")
    parser.add_argument("--output-dir", required=True, help="folder of the unit shards")
    parser.add_argument("--num-processes", type=int, default=2, help="worker processes")


def run(arguments) -> int:
    encoder = load_speech_encoder(arguments.speech_encoder)
    extract_units(arguments.corpus, encoder, arguments.output_dir, arguments.num_processes)
    print(arguments.output_dir)
    return 0
