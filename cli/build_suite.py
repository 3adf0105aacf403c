"""`tinywave build-suite salmon --output-dir outputs/salmon --pairs 200`"""

from ..eval.release_suites import SUITES
from ..eval.suite_releases import RELEASE_VOICES, build_release, verify_unseen
from .argument_types import NUM_PAIRS, NUM_PROCESSES, SEED


def add_arguments(parser):
    parser.add_argument("suite", choices=tuple(SUITES), help="suite to build in the folders of its official release")
    parser.add_argument("--output-dir", required=True, help="folder of the release; a new or an interrupted one")
    parser.add_argument("--pairs", type=NUM_PAIRS, default=200, help="pairs of the suite, or of each of its parts")
    parser.add_argument("--seed", type=SEED, default=0, help="fixes texts, voices, noises and rooms")
    parser.add_argument(
        "--voices",
        nargs="+",
        choices=RELEASE_VOICES,
        metavar="VOICE",
        help="of swuggy, sblimp, storycloze; not salmon",
    )
    parser.add_argument(
        "--unseen-by",
        nargs="+",
        metavar="CORPUS",
        help="corpora that a model was trained on; stops where they hold a sentence of the suite, or a voice that it "
        "calls unseen",
    )
    parser.add_argument("--num-processes", type=NUM_PROCESSES, default=2, help="worker processes that speak")


def run(arguments) -> int:
    folder = build_release(
        arguments.suite,
        arguments.output_dir,
        arguments.pairs,
        arguments.seed,
        voices=arguments.voices,
        num_processes=arguments.num_processes,
    )
    if arguments.unseen_by:
        num_sentences = verify_unseen(folder, arguments.unseen_by)
        print(f"{num_sentences} sentences, none of them in {', '.join(arguments.unseen_by)}")
    print(folder)
    return 0
