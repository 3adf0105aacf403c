"""`tinywave build-suite salmon --output-dir outputs/salmon --pairs 200`"""

from ..eval.release_suites import SUITES
from ..eval.suite_releases import RELEASE_VOICES, build_release


def add_arguments(parser):
    parser.add_argument("suite", choices=tuple(SUITES), help="suite to build in the folders of its official release")
    parser.add_argument("--output-dir", required=True, help="folder of the release; a new or an interrupted one")
    parser.add_argument("--pairs", type=int, default=200, help="number of pairs, in each part where there are parts")
    parser.add_argument("--seed", type=int, default=0, help="fixes texts, voices, noises and rooms")
    parser.add_argument(
        "--voices",
        nargs="+",
        choices=RELEASE_VOICES,
        metavar="VOICE",
        help="of swuggy, sblimp, storycloze; not salmon",
    )
    parser.add_argument("--num-processes", type=int, default=2, help="worker processes that speak")


def run(arguments) -> int:
    folder = build_release(
        arguments.suite,
        arguments.output_dir,
        arguments.pairs,
        arguments.seed,
        voices=arguments.voices,
        num_processes=arguments.num_processes,
    )
    print(folder)
    return 0
