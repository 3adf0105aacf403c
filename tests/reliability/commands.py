"""Every command that works for long, on inputs so small that it takes seconds."""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import yaml

from tinywave.cli.shipped import AUDIO, TEACHER
from tinywave.configuration_tinywave import STREAM_NAMES
from tinywave.data.audio_io import load_audio, write_audio
from tinywave.data.corpus import iterate_corpus
from tinywave.stages.parsing import load_recipe

from .processes import run_command
from .trees import differences, leftovers, read_tree

OUTPUT = "output"
_VOICE = {"voices": "hibari"}


# A pickle of torch, whose bytes depend on which equal strings are one object; records of files name its size.
_PICKLE = "training_args.bin"
_EXEMPT = {f"*{_PICKLE}": "a pickle whose bytes depend on which equal strings are one object"}
_EXEMPT_KEYS = {"*checkpoint_complete.json": (_PICKLE,), "*run.json": (_PICKLE,)}


@dataclass(frozen=True)
class LongCommand:
    """A command of the command line that writes into the folder `OUTPUT` of the working directory, or a file in it.

    Args:
        verb (`str`): also the name of the command in the report, with `variant`.
        arguments: function from the folder of inputs to the arguments after the verb.
        variant (`str`): what is special about it.
        exempt (`Mapping`): patterns of files that two runs may write differently, and the reason for each.
        exempt_keys (`Mapping`): patterns of JSON files and the keys that two runs may write differently: wall times.
        chained (`bool`): kill the continuations of one run in turn, where many runs would take too long.
    """

    verb: str
    arguments: Callable[[Path], list]
    variant: str = ""
    exempt: Mapping[str, str] = field(default_factory=dict)
    exempt_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    chained: bool = False

    @property
    def name(self) -> str:
        return f"{self.verb} {self.variant}".strip()

    def command_line(self, inputs: Path, output: str = OUTPUT) -> list[str]:
        """The arguments of the command line, with another output folder than `OUTPUT` where one is given."""
        words = [str(argument) for argument in self.arguments(inputs)]
        return [self.verb, *(re.sub(f"^{OUTPUT}(?=/|$)", lambda _: output, word) for word in words)]


COMMANDS = (
    LongCommand("prepare", lambda i: [i / "corpus.yaml", "--output-dir", "output", "--num-processes", "1"]),
    LongCommand(
        "prepare",
        lambda i: [i / "corpus.yaml", "--output-dir", "output", "--num-processes", "2"],
        "with two worker processes",
    ),
    LongCommand(
        "prepare", lambda i: [i / "recordings.yaml", "--output-dir", "output", "--num-processes", "1"], "of recordings"
    ),
    LongCommand(
        "extract-units", lambda i: ["--corpus", i / "corpus", "--output-dir", "output", "--num-processes", "1"]
    ),
    LongCommand(
        "fit-units",
        lambda i: [i / "units.yaml", "--corpus", i / "corpus", "--output-dir", "output", "--num-processes", "1"],
    ),
    LongCommand("train", lambda i: [i / "train.yaml", "--units", i / "units", "--output-dir", "output"]),
    LongCommand("correct", lambda i: [i / "correct.yaml", "--units", i / "units", "--output-dir", "output"]),
    LongCommand("distill", lambda i: [i / "distill.yaml", "--units", i / "units", "--output-dir", "output"]),
    LongCommand(
        "train-heads",
        lambda i: [i / "heads.yaml", "--model", i / "student", "--units", i / "units", "--output-dir", "output"],
    ),
    LongCommand(
        "cache-teacher",
        lambda i: [i / "distill.yaml", "--units", i / "units", "--output-dir", "output", "--hidden-states"],
    ),
    LongCommand("train-pitch", lambda i: [i / "pitch.yaml", "--corpus", i / "corpus", "--output-dir", "output"]),
    LongCommand("train-style", lambda i: [i / "style.yaml", "--corpus", i / "corpus", "--output-dir", "output"]),
    LongCommand(
        "train-speech-encoder",
        lambda i: [
            i / "encoder.yaml",
            "--corpus",
            i / "corpus",
            "--units",
            i / "units",
            "--output-dir",
            "output",
        ],  # fmt: skip
    ),
    LongCommand(
        "train-hifigan",
        lambda i: [i / "hifigan.yaml", "--corpus", i / "corpus", "--units", i / "units", "--output-dir", "output"],
    ),
    LongCommand(
        "ablate",
        lambda i: [i / "ablation.yaml", "--units", i / "units", "--suites", i / "suites", "--output-dir", "output"],
        chained=True,
    ),
    LongCommand("build-suites", lambda i: [i / "suites.yaml", "--output-dir", "output", "--num-processes", "1"]),
    LongCommand(
        "build-suite",
        lambda i: ["swuggy", "--pairs", "3", "--voices", "hibari", "--output-dir", "output", "--num-processes", "1"],
    ),
    LongCommand(
        "evaluate",
        lambda i: [
            "--model",
            i / "student",
            "--teacher",
            TEACHER,
            "--suite",
            i / "suites",
            "--units",
            i / "units",
            "--output-dir",
            "output",
        ],  # fmt: skip
    ),
    LongCommand(
        "evaluate",
        lambda i: ["--model", i / "student", "--suite", i / "release", "--output-dir", "output"],
        "of recordings",
    ),
    LongCommand(
        "evaluate-generation",
        lambda i: [
            "--model",
            i / "student",
            "--num-prompts",
            "2",
            "--prompt-seconds",
            "1",
            "--max-new-tokens",
            "24",
            "--output-dir",
            "output",
        ],  # fmt: skip
    ),
    LongCommand("export", lambda i: [i / "student", "output"], "to 8 bits"),
    LongCommand("export", lambda i: [i / "student", "output/model.gguf", "--engine", "gguf"], "to GGUF"),
    LongCommand("export", lambda i: [i / "student", "output", "--engine", "onnx"], "to ONNX"),
    LongCommand(
        "generate",
        lambda i: [
            "--input-dir",
            i / "recordings",
            "--output-dir",
            "output",
            "--model",
            i / "student",
            "--griffin-lim",
            "--max-new-tokens",
            "24",
            "--batch-size",
            "2",
        ],  # fmt: skip
        "of a folder",
    ),
    LongCommand(
        "publish",
        lambda i: [i / "student", "someone/student", "--dry-run", "--griffin-lim", "--output-dir", "output"],
        "--dry-run",
    ),
    LongCommand(
        "quickstart",
        lambda i: ["--recipe", i / "quickstart.yaml", "--output-dir", "output", "--num-processes", "1"],
        exempt={
            "*seconds.json": "wall times",
            "*report.html": "shows the wall times and speeds of report.json",
        },
        exempt_keys={
            "*report.json": ("seconds", "units_per_second"),
            "*continuations.json": ("units_per_second",),
        },
        chained=True,
    ),
)
FAST = ("prepare", "train", "distill", "generate of a folder")


def check_result(
    command: LongCommand, folder: Path, expected: Path, exempt: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """Return how what a command wrote into a folder differs from what an uninterrupted run wrote into another."""
    exempt, exempt_keys = {**_EXEMPT, **command.exempt, **exempt}, {**_EXEMPT_KEYS, **command.exempt_keys}
    found, wanted = (read_tree(item, exempt, exempt_keys) for item in (folder, expected))
    return differences(found, wanted) + [f"left behind: {name}" for name in leftovers(folder)]


def make_inputs(folder: Path) -> Path:
    """Write what the commands read: recipes, a corpus, its units, a student, suites and recordings."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, recipe in _recipes(folder).items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    _run(folder, ["prepare", "corpus.yaml", "--output-dir", "corpus", "--num-processes", "2"])
    _run(folder, ["extract-units", "--corpus", "corpus", "--output-dir", "units", "--streams", *STREAM_NAMES])
    _run(folder, ["distill", "distill.yaml", "--units", "units", "--output-dir", "student"])
    _run(folder, ["build-suites", "suites.yaml", "--output-dir", "suites", "--streams", *STREAM_NAMES])
    _run(folder, ["build-suite", "swuggy", "--pairs", "4", "--voices", "hibari", "--output-dir", "release"])
    for number, row in zip(range(5), iterate_corpus(folder / "corpus"), strict=False):
        waveform = load_audio(row["audio"]["bytes"], 16_000)[: 16_000 + 4_000 * number]
        (folder / "recordings").mkdir(exist_ok=True)
        write_audio(folder / "recordings" / f"{number}.wav", waveform, 16_000)
    return folder


def _run(folder: Path, arguments: list[str]) -> None:
    outcome = run_command(arguments, folder)
    if outcome.exit_code:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{outcome.errors}")


def _recipes(folder: Path) -> dict[str, dict]:
    documents = [
        {"domain": "word_list", "split": split, "count": count, "styles": {style: 1}, **_VOICE}
        for style in ("base", "happy", "sad", "angry", "breathy")
        for split, count in (("train", 2), ("validation", 1))
    ]
    documents += [
        {"domain": "book", "split": "train", "count": 1, **_VOICE},
        {"domain": "story", "split": "test", "count": 2, **_VOICE},
    ]
    corpus = {"seed": 3, "documents": documents}
    train = _shorten("nano/teacher", domains=["word_list", "story"])
    train["training"] |= {"torch_compile": False, "bf16": False}
    quickstart = load_recipe("nano/quickstart") | {
        "corpus": {"seed": 3, "documents": [
            {"domain": domain, "split": split, "count": count, **_VOICE}
            for domain, split, count in (("story", "train", 2), ("word_list", "train", 2), ("story", "test", 1))
        ]},
        "correction": str(folder / "correct.yaml"),
        "distillation": str(folder / "distill.yaml"),
        "suites": ["speaker"],
        "num_resynthesis_clips": 1,
        "num_continuations": 1,
        "generation": {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 20},
    }  # fmt: skip
    ablation = load_recipe("ablation") | {
        "distillation": str(folder / "distill.yaml"),
        "correction": str(folder / "correct.yaml"),
        "streams": list(STREAM_NAMES),
        "suites": ["lexical"],
        "seeds": [0],
        "training": {"max_steps": 2, "warmup_steps": 0},
        "runs": {"all": {}, "uncorrected_teacher": {"corrected": False}},
    }
    hifigan = _shorten("nano/hifigan")
    hifigan["model"] |= {"initial_channels": 32}
    hifigan["training"] |= {"bf16": False, "use_cpu": True, "discriminator_channels": 32, "segment_samples": 2560}
    hifigan["training"].pop("dataloader_persistent_workers")
    return {
        "corpus": corpus,
        "recordings": {"recordings": [{"folder": str(AUDIO / "librivox"), "split": "train", "licence": "public"}]},
        "units": {"num_units": 8, "layer": 1, "max_frames": 400, "seed": 0},
        "train": train,
        "correct": _shorten("nano/correction"),
        "distill": _shorten("nano/distillation", attention_weight=0.0),
        "heads": _shorten("nano/parallel_heads"),
        "pitch": _shorten("nano/pitch", hours={"train": 0.01, "validation": 0.002}),
        "style": _shorten("nano/style", hours_per_style=0.001),
        "encoder": _shorten("nano/hubert_speech_encoder"),
        "hifigan": hifigan,
        "ablation": ablation,
        "suites": {"seed": 5, "suites": {"lexical": 8}},
        "quickstart": quickstart,
    }


def _shorten(name: str, attention_weight: float | None = None, **settings) -> dict:
    """A packaged recipe with four steps on two examples each, and a checkpoint after every other step."""
    recipe = copy.deepcopy(load_recipe(name)) | settings
    recipe["training"] |= {"max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2, "logging_steps": 1}
    for key in ("eval_steps", "eval_strategy", "dataloader_num_workers"):
        recipe["training"].pop(key, None)
    if attention_weight is not None:
        recipe["training"]["attention_weight"] = attention_weight
    return recipe
