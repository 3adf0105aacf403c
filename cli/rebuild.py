"""`tinywave rebuild --output-dir outputs/rebuild`: every shipped artefact from nothing, in about three hours.

The steps are the verbs of this command line with the packaged recipes, each of which continues where it stopped.
"""

from pathlib import Path

from ..training.checkpoints import save_in_bfloat16
from . import main as command_line
from .loading import load_language_model


def add_arguments(parser):
    parser.add_argument("--output-dir", default="outputs/rebuild", help="folder of everything that is made")


def run(arguments) -> int:
    folder = Path(arguments.output_dir)
    encoder, units = folder / "speech_encoder", folder / "units"
    steps = [
        ["prepare", "nano/corpus", "--output-dir", folder / "corpus"],
        ["fit-units", "nano/units", "--corpus", folder / "corpus", "--output-dir", encoder],
        ["extract-units", "--corpus", folder / "corpus", "--speech-encoder", encoder, "--output-dir", units],
        ["train", "nano/teacher", "--units", units, "--output-dir", folder / "teacher"],
        [
            "train", "nano/interleaved_teacher", "--units", units, "--init-from", folder / "teacher",
            "--output-dir", folder / "interleaved_teacher",
        ],
        ["build-suites", "nano/suites", "--speech-encoder", encoder, "--output-dir", folder / "suites"],
        ["train-vocoder", "nano/vocoder", "--speech-encoder", encoder, "--output-dir", folder / "vocoder"],
    ]  # fmt: skip
    for step in steps:
        words = [str(word) for word in step]
        print(f"\ntinywave {' '.join(words)}", flush=True)
        if exit_code := command_line.main(words):
            return exit_code
    model, processor = load_language_model(folder / "interleaved_teacher")
    save_in_bfloat16(model, folder / "shipped_teacher")
    processor.save_pretrained(folder / "shipped_teacher")
    return 0
