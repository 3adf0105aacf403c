"""`tinywave evaluate-codec --corpus outputs/codec/corpus --output-dir outputs/codec_report`"""

from functools import partial
from pathlib import Path

from ..codec_tinywave import CODEC_PARTS
from ..data.codec_loading import load_speech_encoder
from ..eval.codec_contours import draw_contours
from ..eval.codec_material import (
    read_clip_utterances,
    read_corpus_utterances,
    speak_in_every_voice,
    voice_sentences,
)
from ..eval.codec_report import CodecMaterial, CodecReport
from ..eval.codec_table import PICTURE, report_to_markdown, write_page
from .loading import add_codec_arguments, open_codec
from .shipped import AUDIO, WHISPER_UNITS


def add_arguments(parser):
    add_codec_arguments(parser)
    parser.add_argument(
        "--teacher", default=str(WHISPER_UNITS), help="folder of the encoder whose units the codec's own learnt"
    )
    parser.add_argument("--corpus", required=True, help="speech corpus whose validation split no part was trained on")
    parser.add_argument(
        "--other-voices",
        default=str(AUDIO / "kokoro"),
        help="speech corpus by voices that nothing was trained on, in its test split",
    )
    parser.add_argument(
        "--recordings", default=str(AUDIO / "librivox"), help="folder of human speech with transcripts.json"
    )
    parser.add_argument("--output-dir", required=True, help="folder of codec.json and of every finished part")
    parser.add_argument(
        "--page", help="Markdown page that gets the tables; codec.json and the picture are written beside it"
    )


def run(arguments) -> int:
    """Measure the codec part by part, print the tables, and write them where they belong."""
    folder = Path(arguments.output_dir)
    material = CodecMaterial(
        sets={
            "hibari": read_corpus_utterances(arguments.corpus, "validation"),
            "kokoro": read_corpus_utterances(arguments.other_voices, "test"),
            "librivox": read_clip_utterances(arguments.recordings),
        },
        read_voices=partial(speak_in_every_voice, folder / "voices", voice_sentences()),
        clips="librivox",
        shown="hibari",
    )
    report = CodecReport(
        open_codec(arguments),
        folders_of_parts(arguments),
        load_speech_encoder(arguments.teacher),
        material,
        folder,
    )
    record = report.measure()
    draw_contours(report.trace(), folder / PICTURE)
    if arguments.page:
        write_page(record, folder / PICTURE, arguments.page)
    print(report_to_markdown(record))
    return 0


def folders_of_parts(arguments) -> dict[str, Path]:
    """Where each model of the codec was loaded from."""
    folders = {part: Path(arguments.codec) / part for part in CODEC_PARTS}
    for part in ("speech_encoder", "vocoder"):
        if getattr(arguments, part):
            folders[part] = Path(getattr(arguments, part))
    return {part: folder for part, folder in folders.items() if (folder / "config.json").is_file()}
