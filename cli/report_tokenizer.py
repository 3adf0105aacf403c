"""`tinywave report-tokenizer --corpus outputs/corpus --output-dir outputs/tokenizers`"""

from pathlib import Path

from transformers.utils import logging

from ..codec_tinywave import SpeechCodec
from ..data.codec_loading import load_codec
from ..data.storage import atomic_file, write_json
from ..eval.codec_material import read_corpus_utterances
from ..eval.resynthesis import WhisperTranscriber
from ..eval.tokenizer_report import report_tokenizers, tokenizers_to_markdown
from .argument_types import COUNT, SEED
from .shipped import CODEC, WHISPER_UNITS


def add_arguments(parser):
    parser.add_argument(
        "tokenizers",
        nargs="*",
        default=[str(CODEC), str(WHISPER_UNITS)],
        help="folders of codecs, or of speech encoders alone, which --codec then gives a vocoder",
    )
    parser.add_argument("--codec", default=str(CODEC), help="codec whose vocoder speaks the units of speech encoders")
    parser.add_argument("--corpus", required=True, help="speech corpus with phone times that no tokenizer was made on")
    parser.add_argument("--split", default="test", help="of the corpus")
    parser.add_argument("--max-documents", type=COUNT, help="documents at most; without it all of the split")
    parser.add_argument("--seed", type=SEED, default=0, help="of the bootstrap")
    parser.add_argument("--output-dir", required=True, help="folder of tokenizers.json and tokenizers.md")


def run(arguments) -> int:
    """Measure every tokenizer on the same recordings, print the table and write it with the numbers."""
    logging.disable_progress_bar()
    folders = {Path(folder).name: folder for folder in arguments.tokenizers}
    if len(folders) < len(arguments.tokenizers):
        raise ValueError(
            f"found the tokenizers {arguments.tokenizers}, of which two have the same name; expected folders of "
            "different names"
        )
    codecs = {name: open_tokenizer(folder, arguments.codec) for name, folder in folders.items()}
    utterances = read_corpus_utterances(arguments.corpus, arguments.split, arguments.max_documents)
    record = report_tokenizers(codecs, utterances, WhisperTranscriber(), seed=arguments.seed)
    table, folder = tokenizers_to_markdown(record), Path(arguments.output_dir)
    write_json(record, folder / "tokenizers.json")
    with atomic_file(folder / "tokenizers.md") as partial:
        partial.write_text(table + "\n", encoding="utf-8")
    print(table)
    return 0


def open_tokenizer(folder: str | Path, vocoder_codec: str | Path) -> SpeechCodec:
    """Load a codec, or make one of a speech encoder and another codec's vocoder."""
    if (Path(folder) / "speech_encoder").is_dir():
        return load_codec(folder)
    return load_codec(vocoder_codec, ["unit"], speech_encoder=folder)
