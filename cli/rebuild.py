"""`tinywave rebuild --output-dir outputs/rebuild`: every shipped artefact from nothing, in about two hours.

The steps are the verbs of this command line with the packaged recipes, each of which continues where it stopped. The
folder `assets` in the output folder has the layout of the package's own.
"""

import shutil
from pathlib import Path

from ..data.codec_loading import load_speech_encoder
from ..training.checkpoints import save_in_bfloat16
from . import main as command_line
from .loading import load_language_model, load_vocoder


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
        [
            "train", "nano/story_teacher", "--units", units, "--init-from", folder / "interleaved_teacher",
            "--output-dir", folder / "story_teacher",
        ],
        ["build-suites", "nano/suites", "--speech-encoder", encoder, "--output-dir", folder / "suites"],
        ["train-vocoder", "nano/vocoder", "--speech-encoder", encoder, "--output-dir", folder / "vocoder"],
        ["prepare", "nano/unseen_voices", "--output-dir", folder / "assets" / "audio" / "kokoro"],
    ]  # fmt: skip
    for step in steps:
        words = [str(word) for word in step]
        print(f"\ntinywave {' '.join(words)}", flush=True)
        if exit_code := command_line.main(words):
            return exit_code
    collect_assets(folder)
    print(folder / "assets")
    return 0


def collect_assets(folder: Path) -> None:
    """Copies what is shipped of the encoder, the teacher, the vocoder and the suites into `folder/assets`."""
    assets = folder / "assets"
    load_speech_encoder(folder / "speech_encoder").save_quantizer(assets / "speech_encoder")
    model, processor = load_language_model(folder / "story_teacher")
    save_in_bfloat16(model, assets / "teacher")
    processor.save_pretrained(assets / "teacher")
    save_in_bfloat16(load_vocoder(folder / "vocoder"), assets / "vocoder")
    (assets / "suites").mkdir(exist_ok=True)
    for suite in sorted((folder / "suites").glob("*.parquet")):
        shutil.copy2(suite, assets / "suites" / suite.name)
