"""A complete model repository in a local folder: assembled anew, kept where it is what was there before."""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects

from ..codec_tinywave import SpeechCodec
from ..data.audio_io import write_audio
from ..data.storage import partial_path, read_json, replace_folder, write_json
from ..eval.result_records import write_hub_results
from ..pipeline_tinywave import TinyWavePipeline
from ..training.model_card import CARD
from ..vocoder_tinywave import Vocoder
from .clean_check import CheckResult, check_repository
from .repository_card import CodecFacts, Example, repository_card
from .run_facts import HUB_RESULTS, RunFacts
from .upload import IGNORED, STAMP

EXAMPLES = "examples"
TOKENIZER_CONFIG = "tokenizer_config.json"
_OF_THIS_MACHINE = ("local_files_only", "is_local")
EXAMPLE_SEED = 0
EXAMPLE_GENERATION = {"do_sample": True, "temperature": 0.8, "top_k": 25, "min_new_tokens": 40, "max_new_tokens": 100}


@dataclass(frozen=True)
class Source:
    """What a repository is made of.

    Attributes:
        pipeline ([`TinyWavePipeline`]): the model, its processor and its codec.
        facts ([`RunFacts`]): what is known of the model.
        codec_licences (`list[tuple[str, str]]`): part of the codec and its licence, those that are known.
        licence_texts (`dict[str, Path]`): path in the repository and the file to copy there, for parts whose licence
            has to go with them.
        recording (`np.ndarray` of shape `(samples,)`): speech at the rate of the codec's encoder, to check the
            repository with and, where the run has no samples, to continue as an example.
        recording_caption (`str`): what it is and whose.
        dataset_id (`str` or None): data set on the Hub that the results are entered under, if there is one.
    """

    pipeline: TinyWavePipeline
    facts: RunFacts
    codec_licences: Sequence[tuple[str, str]]
    licence_texts: Mapping[str, Path]
    recording: np.ndarray
    recording_caption: str
    dataset_id: str | None

    @property
    def reference(self) -> TinyWavePipeline:
        """What a repository has to do: the same without a neural decoder, which is a function and is not saved."""
        codec = self.pipeline.codec
        parts = {name: getattr(codec, name) for name in ("pitch_encoder", "style_encoder", "f0_extractor")}
        saved = SpeechCodec(codec.speech_encoder, codec.vocoder, **parts)
        return TinyWavePipeline(self.pipeline.model, self.pipeline.processor, saved)


@dataclass(frozen=True)
class Assembly:
    """A repository on disk.

    Attributes:
        folder (`Path`): the repository.
        files (`dict[str, int]`): paths in it and their sizes in bytes.
        checks (`list[CheckResult]`): of this run; empty where an earlier run checked the same files.
        is_reused (`bool`): whether the folder is the one that was there before.
        is_card_edited (`bool`): whether its card was changed by hand since, which is kept.
    """

    folder: Path
    files: dict[str, int]
    checks: list[CheckResult]
    is_reused: bool
    is_card_edited: bool


def build_repository(source: Source, repo_id: str, folder: str | os.PathLike) -> Assembly:
    """Assemble a repository, and check it where this package is not installed.

    The same files are not checked twice, and a card that was edited by hand is kept as long as everything else is the
    same. Weights are written by `save_pretrained`, so nothing of the training (checkpoints, optimizer states, pickles)
    is in the repository.

    Args:
        source: what it is made of.
        repo_id: "owner/name".
        folder: of the repository; new, empty, or written by an earlier call.

    Raises `ValueError` for a folder with other things in it, for an edited card of another model, and
    [`RepositoryCheckError`] for a repository that does not compute what the original computes.
    """
    folder = Path(folder)
    stamp = _read_stamp(folder)
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _assemble(source, repo_id, partial)
        hashes = _hashes(partial)
        is_same, is_card_edited = _compare(stamp, hashes, folder)
        if not is_same:
            stamp = {"files": hashes, "checked_with": None}
            write_json(stamp, partial / STAMP)
            replace_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    checks = []
    if stamp["checked_with"] != _versions():
        checks = check_repository(folder, source.reference, source.recording)
        write_json(stamp | {"checked_with": _versions()}, folder / STAMP)
    return Assembly(folder, repository_files(folder), checks, is_same, is_card_edited)


def repository_files(folder: Path) -> dict[str, int]:
    """Paths of a repository's files, as they are uploaded, and their sizes in bytes."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    uploaded = filter_repo_objects(paths, ignore_patterns=list(IGNORED))
    return {path: (folder / path).stat().st_size for path in uploaded}


def _assemble(source: Source, repo_id: str, folder: Path) -> None:
    pipeline, facts = source.pipeline, source.facts
    pipeline.save_pretrained(folder)
    _forget_the_machine(folder / TOKENIZER_CONFIG)
    examples = _copy_samples(facts, folder) or [_speak_example(source, folder)]
    if facts.results and source.dataset_id:
        write_hub_results(facts.results, source.dataset_id, folder)
    for path in facts.hub_results:
        (folder / HUB_RESULTS).mkdir(exist_ok=True)
        shutil.copyfile(path, folder / HUB_RESULTS / path.name)
    for path, text in source.licence_texts.items():
        shutil.copyfile(text, folder / path)
    codec = CodecFacts(
        needs_decoder=isinstance(pipeline.codec.vocoder, Vocoder),
        needs_f0=pipeline.codec.pitch_encoder is not None,
        licences=source.codec_licences,
    )
    card = repository_card(repo_id, pipeline.model.config, pipeline.model.num_parameters(), facts, codec, examples)
    (folder / CARD).write_text(card, encoding="utf-8")


def _forget_the_machine(tokenizer_config: Path) -> None:
    """Take out how the tokenizer was loaded here, which transformers saves with it."""
    settings = read_json(tokenizer_config)
    write_json({name: value for name, value in settings.items() if name not in _OF_THIS_MACHINE}, tokenizer_config)


def _copy_samples(facts: RunFacts, folder: Path) -> list[Example]:
    """Recordings that the run made."""
    examples = []
    for number, sample in enumerate(facts.samples, start=1):
        sources = {"prompt": sample.prompt, "continuation": sample.continuation}
        paths = {name: f"{EXAMPLES}/{number}_{name}{source.suffix}" for name, source in sources.items()}
        (folder / EXAMPLES).mkdir(exist_ok=True)
        for name, source in sources.items():
            shutil.copyfile(source, folder / paths[name])
        examples.append(Example(**paths, caption=f'"{sample.text}"'))
    return examples


def _speak_example(source: Source, folder: Path) -> Example:
    """A recording and what the model says after it, with a seed, so that the same model says the same."""
    pipeline = source.pipeline
    rate = pipeline.codec.input_sampling_rate
    torch.manual_seed(EXAMPLE_SEED)
    segments = pipeline([("speech", source.recording)], sampling_rate=rate, **EXAMPLE_GENERATION)
    example = Example(
        f"{EXAMPLES}/1_prompt.wav",
        f"{EXAMPLES}/1_continuation.wav",
        f"{source.recording_caption}. Sampled with seed {EXAMPLE_SEED}, temperature "
        f"{EXAMPLE_GENERATION['temperature']}, top-k {EXAMPLE_GENERATION['top_k']}, and spoken "
        f"{'through the neural decoder' if pipeline.codec.decoder else 'as the pipeline does by itself'}.",
    )
    (folder / EXAMPLES).mkdir()
    write_audio(folder / example.prompt, source.recording, rate)
    spoken = torch.cat([segment.waveform for segment in segments]).numpy()
    write_audio(folder / example.continuation, spoken, pipeline.codec.output_sampling_rate)
    return example


def _read_stamp(folder: Path) -> dict:
    """What an earlier call wrote into the folder; `ValueError` where something else is in it."""
    if (folder / STAMP).is_file():
        return read_json(folder / STAMP)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} holds other things than a repository that tinywave publish made; name a new or empty folder "
            "with --output-dir"
        )
    return {"files": {}, "checked_with": None}


def _compare(stamp: dict, hashes: dict[str, str], folder: Path) -> tuple[bool, bool]:
    """Whether the repository of a folder is the same as a new one, and whether its card was edited by hand."""
    if not stamp["files"]:
        return False, False
    present = _hashes(folder)
    is_card_edited = present.get(CARD, stamp["files"][CARD]) != stamp["files"][CARD]
    if is_card_edited:
        # The edited card stands for the one that is assembled.
        hashes, present = ({name: value for name, value in each.items() if name != CARD} for each in (hashes, present))
    is_same = present == hashes
    if is_card_edited and not is_same:
        raise ValueError(
            f"{folder / CARD} was edited by hand, and the rest of the repository is no longer what it was; move the "
            "card away, or name another folder with --output-dir"
        )
    return is_same, is_card_edited


def _hashes(folder: Path) -> dict[str, str]:
    hashes = {}
    for path in repository_files(folder):
        with open(folder / path, "rb") as file:
            hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__}
