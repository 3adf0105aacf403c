"""`tinywave rebuild --output-dir outputs/rebuild`: every shipped artefact from nothing, in a few hours.

The steps are the verbs of this command line with the packaged recipes, each of which continues where it stopped. The
folder `assets` in the output folder has the layout of the package's own.
"""

import shutil
from pathlib import Path

from ..configuration_tinywave import STREAM_NAMES
from ..data.codec_loading import load_codec, load_speech_encoder
from ..training.checkpoints import save_in_bfloat16
from . import main as command_line
from .loading import load_language_model


def add_arguments(parser):
    parser.add_argument("--output-dir", default="outputs/rebuild", help="folder of everything that is made")


def run(arguments) -> int:
    folder = Path(arguments.output_dir)
    for step in (*steps_of_units(folder), *steps_of_codec(folder), *steps_of_prosody(folder)):
        words = [str(word) for word in step]
        print(f"\ntinywave {' '.join(words)}", flush=True)
        if exit_code := command_line.main(words):
            return exit_code
    collect_assets(folder)
    print(folder / "assets")
    return 0


def steps_of_units(folder: Path) -> list[list]:
    """From text to a teacher of units and text, on the units of Whisper."""
    encoder, units = folder / "whisper_units", folder / "units"
    return [
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
    ]  # fmt: skip


def steps_of_codec(folder: Path) -> list[list]:
    """The codec: a speech encoder cut from that of the same units, pitch, style, and a vocoder of all three."""
    codec, whisper, corpus = folder / "codec", folder / "whisper_units", folder / "codec_corpus"
    names = ("people", "encoder_corpus")
    heard, units = [folder / name for name in names], [folder / f"units_of_{name}" for name in names]
    steps = [["prepare", "nano/codec_corpus", "--output-dir", corpus]]
    for name, one_corpus, its_units in zip(names, heard, units, strict=True):
        steps += [
            ["prepare", f"nano/{name}", "--output-dir", one_corpus],
            ["extract-units", "--corpus", one_corpus, "--speech-encoder", whisper, "--output-dir", its_units],
        ]
    return [
        *steps,
        [
            "train-speech-encoder", "nano/speech_encoder", "--corpus", *heard, "--units", *units,
            "--teacher", whisper, "--output-dir", codec / "speech_encoder",
        ],
        ["train-pitch", "nano/pitch", "--corpus", corpus, "--output-dir", codec / "pitch_encoder"],
        ["train-style", "nano/style", "--corpus", corpus, "--output-dir", codec / "style_encoder"],
        ["train-vocoder", "nano/vocoder", "--codec", codec, "--output-dir", codec / "vocoder"],
    ]  # fmt: skip


def steps_of_prosody(folder: Path) -> list[list]:
    """The shipped teacher and suites, which read the codec's units, pitch and style; and voices nobody has heard."""
    codec, streams = folder / "codec", folder / "streams"
    return [
        [
            "extract-units", "--corpus", folder / "codec_corpus", "--codec", codec,
            "--streams", *STREAM_NAMES, "--output-dir", streams,
        ],
        [
            "train", "nano/expressive_teacher", "--units", streams, "--init-from", folder / "story_teacher",
            "--output-dir", folder / "expressive_teacher",
        ],
        [
            "build-suites", "nano/suites", "--codec", codec, "--streams", *STREAM_NAMES,
            "--output-dir", folder / "suites",
        ],
        ["prepare", "nano/unseen_voices", "--output-dir", folder / "assets" / "audio" / "kokoro"],
    ]  # fmt: skip


def collect_assets(folder: Path) -> None:
    """Copy what is shipped of the encoders, the vocoder, the teacher and the suites into `folder/assets`."""
    assets = folder / "assets"
    teacher = load_speech_encoder(folder / "whisper_units")
    teacher.quantizer.half()
    teacher.save_quantizer(assets / "whisper_units")
    codec = load_codec(folder / "codec", griffin_lim=True)
    for name in ("speech_encoder", "pitch_encoder", "style_encoder", "vocoder"):
        save_in_bfloat16(getattr(codec, name), assets / "codec" / name)
    model, processor = load_language_model(folder / "expressive_teacher")
    save_in_bfloat16(model, assets / "teacher")
    processor.save_pretrained(assets / "teacher")
    for copy in assets.rglob("*.py"):  # The package ships its code once; whoever saves a model gets it beside it.
        copy.unlink()
    (assets / "suites").mkdir(exist_ok=True)
    for suite in sorted((folder / "suites").glob("*.parquet")):
        shutil.copy2(suite, assets / "suites" / suite.name)
