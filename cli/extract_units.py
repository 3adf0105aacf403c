"""`tinywave extract-units --corpus outputs/corpus --streams unit pitch style --output-dir outputs/units`"""

from ..data.unit_extraction import extract_units
from .argument_types import NUM_PROCESSES
from .loading import add_codec_arguments, add_streams_argument, open_codec


def add_arguments(parser):
    parser.add_argument("--corpus", required=True, help="folder that `tinywave prepare` wrote")
    add_codec_arguments(parser, speaks=False)
    add_streams_argument(parser)
    parser.add_argument("--output-dir", required=True, help="folder of the unit shards")
    parser.add_argument("--num-processes", type=NUM_PROCESSES, default=2, help="worker processes")


def run(arguments) -> int:
    codec = open_codec(arguments, arguments.streams)
    extract_units(arguments.corpus, codec, arguments.output_dir, arguments.num_processes)
    print(arguments.output_dir)
    return 0
