"""Hundreds of inputs made from good ones by one mistake each: a clean refusal or the right result, nothing else.

Every case is a call of the command line in this process. A refusal is exit code 2 and one line on standard error that
begins with "tinywave: "; exit code 70 stands for a defect, and fails.
"""

import contextlib
import copy
import io
import json
import random
import shutil
import signal
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import soundfile
import torch
import yaml

from tinywave.cli.main import VERBS, build_parser, main
from tinywave.cli.shipped import ASSETS, AUDIO, CODEC, SUITES, TEACHER
from tinywave.data.audio_io import load_audio
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.stages.parsing import load_recipe
from tinywave.tests.reliability.commands import COMMANDS
from tinywave.training.layer_map import LayerMap
from tinywave.training.student_init import student_from_teacher

SECONDS_PER_CASE = 120
NUM_FLIPS = 12
SAMPLE = 0.1  # share of the cases that is tried where not all are asked for


@dataclass(frozen=True)
class Case:
    """One call and what must come of it.

    Args:
        mistake (`str`): what is wrong.
        arguments: of the command line.
        is_right (*optional*): whether what was printed and written is right. Default: the call must be refused.
        may_be_refused (`bool`): a refusal is as good as the right result, as for a file with a flipped bit.
        output (`Path`, *optional*): what must not exist after a refusal.
    """

    mistake: str
    arguments: tuple[str, ...]
    is_right: Callable[[str], bool] | None = None
    may_be_refused: bool = False
    output: Path | None = None

    @property
    def expected(self) -> str:
        if self.is_right is None:
            return "refused"
        return "refused or works" if self.may_be_refused else "works"


def call(arguments) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command line; a hang raises `TimeoutError`."""

    def stop(number, frame):
        raise TimeoutError(f"{arguments} hangs")

    out, errors = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS_PER_CASE)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            exit_code = main([str(argument) for argument in arguments])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return exit_code, out.getvalue(), errors.getvalue()


def _files_of(output: Path) -> list[str]:
    """The files at an output or below it, without the record of which inputs a folder was begun with."""
    files = [output] if output.is_file() else [path for path in output.rglob("*") if path.is_file()]
    return sorted(path.name for path in files if path.name != "run.json")


def problem_of(case: Case) -> str | None:
    """What is wrong with the answer to a case; None for a clean refusal and for the right result."""
    exit_code, out, errors = call(case.arguments)
    refusals = [line for line in errors.splitlines() if line.startswith("tinywave: ")]
    refusals = [line for line in refusals if not line.startswith("tinywave: warning: ")]
    if "Traceback" in errors or " hangs" in errors or exit_code not in (0, 2):
        return f"exit code {exit_code}: {errors[-300:]}"
    if exit_code == 0:
        if case.is_right is None or not case.is_right(out):
            return f"was accepted and printed {out[-200:]!r}"
        return None
    if case.is_right is not None and not case.may_be_refused:
        return f"was refused: {errors[-300:]!r}"
    if len(refusals) != 1 or len(refusals[0].split()) < 4:
        return f"expected one clear line: {errors[-300:]!r}"
    if case.output is not None and (left := _files_of(case.output)):
        return f"was refused and left {', '.join(left)}"
    return None


@pytest.fixture(scope="module")
def counted():
    """The number of cases by family, printed at the end."""
    numbers: dict[str, int] = {}
    yield numbers
    print(f"\nbad inputs: {sum(numbers.values())} cases, {numbers}")


@pytest.fixture
def try_all(counted, record):
    """Return a function that tries cases and returns the problems."""

    def run(family: str, cases: Iterable[Case]) -> str:
        problems = []
        for case in cases:
            problem = problem_of(case)
            found = [problem] if problem else []
            problems += [f"{case.mistake}: {problem}" for problem in found]
            counted[family] = counted.get(family, 0) + 1
            record("bad_input", family=family, case=case.mistake, expected=case.expected, problems=found)
        return "\n".join(problems)

    return run


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A small student, a recording, its tokens and what they sound like: good inputs, all of which are accepted."""
    folder = tmp_path_factory.mktemp("material")
    teacher = TinyWaveForCausalLM.from_pretrained(TEACHER, dtype="float32")
    teacher.config = teacher.config.with_streams(["unit"])
    student = student_from_teacher(teacher, LayerMap.from_pairs([[0, 0], [10, 1]]))
    student.save_pretrained(folder / "model")
    TinyWaveProcessor.from_config(
        student.config, TinyWaveProcessor.from_pretrained(TEACHER).tokenizer
    ).save_pretrained(folder / "model")
    clip = load_audio(min((AUDIO / "librivox").glob("*.flac")))[:16_000]
    soundfile.write(folder / "clip.wav", clip, 16_000)
    assert call(["encode", folder / "clip.wav", "--output", folder / "tokens.json"])[0] == 0
    assert call(["decode", folder / "tokens.json", folder / "spoken.wav", "--griffin-lim"])[0] == 0
    return folder


def encode(path) -> tuple[str, ...]:
    return ("encode", str(path), "--json")


def flips(content: bytes, seed: str, start: int = 0) -> Iterator[tuple[str, bytes]]:
    """Copies of a file with one bit flipped, at seeded places."""
    draw = random.Random(seed)
    for _ in range(NUM_FLIPS):
        position, bit = draw.randrange(start, min(len(content), start + 400)), draw.randrange(8)
        changed = bytearray(content)
        changed[position] ^= 1 << bit
        yield f"bit {bit} of byte {position} flipped", bytes(changed)


def is_units(out: str) -> bool:
    """Whether tokens were printed for about as much speech as the record says."""
    record = json.loads(out)
    return abs(len(record["units"]) - record["seconds"] * record["unit_rate"]) <= 2 and len(record["units"]) > 1


def audio_cases(material: Path, folder: Path) -> Iterator[Case]:
    clip = load_audio(material / "clip.wav")
    kinds = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "mp3": ("MP3", None)}
    for suffix, (kind, subtype) in kinds.items():
        soundfile.write(folder / f"good.{suffix}", clip, 16_000, format=kind, subtype=subtype)
        content = (folder / f"good.{suffix}").read_bytes()
        changed = [(f"cut to {share:.0%}", content[: int(share * len(content))]) for share in (0.01, 0.1, 0.5, 0.9)]
        changed += list(flips(content, suffix))
        changed += [("empty", b""), ("zeros", bytes(5000)), ("text", b"hello " * 1000), ("twice", content * 2)]
        for number, (mistake, data) in enumerate(changed):
            path = folder / f"{number}.{suffix}"
            path.write_bytes(data)
            yield Case(f"{suffix} {mistake}", encode(path), is_units, may_be_refused=True)
    arrays = {
        "16-bit scale": clip * 32768, "NaN": np.where(np.arange(len(clip)) == 5, np.nan, clip), "silence": 0 * clip,
        "infinite": np.where(np.arange(len(clip)) == 5, np.inf, clip), "one sample": clip[:1], "short": clip[:500],
        "antiphase": np.stack([clip, -clip], 1), "constant": np.full_like(clip, 0.5), "clipped": np.sign(clip),
    }  # fmt: skip
    for name, samples in arrays.items():
        soundfile.write(folder / f"{name}.wav", samples, 16_000, subtype="FLOAT")
        yield Case(name, encode(folder / f"{name}.wav"), is_units, may_be_refused=True)
    for rate in (1, 100, 2**31 - 1):
        header = struct.pack(
            "<4sI4s4sIHHIIHH4sI", b"RIFF", 136, b"WAVE", b"fmt ", 16, 1, 1, rate, rate, 2, 16, b"data", 100
        )
        (folder / f"rate{rate}.wav").write_bytes(header + bytes(100))
        yield Case(f"rate {rate}", encode(folder / f"rate{rate}.wav"))
    (folder / "a folder.wav").mkdir()
    (folder / "link.wav").symlink_to(folder / "nowhere")
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    for name in ("a folder.wav", "link.wav", "loop.wav", "nothing.wav", "n" * 300, "", "\0", str(material / "model")):
        yield Case(f"path {name[:20]!r}", encode(folder / name if "\0" not in name else name))


def leaves(value, path=()) -> Iterator[tuple]:
    """Paths of every value of nested lists and dictionaries, the first two of each list."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*path, key))


WRONG_VALUES = (None, True, -1, 10**30, 1.5, float("nan"), "text", [], {}, [[]])


def changed_at(value, path, replacement):
    if not path:
        return replacement
    changed = copy.deepcopy(value)
    target = changed
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = replacement
    return changed


def token_cases(material: Path, folder: Path) -> Iterator[Case]:
    record = json.loads((material / "tokens.json").read_text())
    texts = {
        (f"{path} = {value!r}", path, json.dumps(value)): json.dumps(changed_at(record, path, value))
        for path in leaves(record)
        for value in WRONG_VALUES
    }
    broken = {"garbage": "\x00\xff", "cut": json.dumps(record)[:100], "list": "[]", "empty": "", "nested": "[" * 9000}
    texts |= {(mistake, (), ""): text for mistake, text in broken.items()}
    texts |= {(f"without {key}", (key,), "null"): json.dumps({k: v for k, v in record.items() if k != key})
              for key in record}  # fmt: skip
    spoken = (material / "spoken.wav").read_bytes()
    for number, ((mistake, path, value), text) in enumerate(texts.items()):
        file, out = folder / f"{number}.json", folder / f"{number}.wav"
        file.write_text(text, encoding="utf-8", errors="surrogateescape")

        def is_same(printed, out=out):
            return out.read_bytes() == spoken

        def is_as_long(printed, out=out):
            return soundfile.info(out).frames == soundfile.info(material / "spoken.wav").frames

        def is_speech(printed, out=out):
            return soundfile.info(out).frames > 1000

        is_right = None
        if path and path[0] in ("seconds", "tokens") and not (path[0] == "tokens" and path_is_wrong(path, value)):
            is_right = is_same  # They are not read where there are units.
        elif value == "null" and path and (path[0] == "codec" or path[0].endswith("_rate")):
            is_right = is_same
        elif path == ("style_rate",) and value == "true":
            is_right = is_same  # 1 in Python
        elif value == "null" and path in (("pitch",), ("style",)):
            is_right = is_as_long
        elif value == "null" and path == ("units",):
            is_right = is_speech  # The durations are predicted.
        yield Case(mistake, ("decode", str(file), str(out), "--griffin-lim"), is_right, output=out)


def path_is_wrong(path: tuple, value: str) -> bool:
    """Whether a value in the list of tokens is none that a list of tokens may have."""
    return value not in (("null", "[]") if len(path) == 1 else ('"text"',))


def copy_of(source: Path, target: Path) -> Path:
    """A copy of a folder without links; it is replaced, not linked, by what is written next."""
    return Path(shutil.copytree(source, target))


def checkpoint_cases(material: Path, folder: Path) -> Iterator[Case]:
    clip, out = str(material / "clip.wav"), str(folder / "out.wav")
    use = {
        "model": lambda path: ("generate", clip, out, "--model", str(path), "--max-new-tokens", "2"),
        "speech_encoder": lambda path: ("encode", clip, "--speech-encoder", str(path)),
        "vocoder": lambda path: (
            "decode",
            str(material / "tokens.json"),
            out,
            "--vocoder",
            str(path),
            "--griffin-lim",
        ),
    }
    parts = ("speech_encoder", "vocoder", "pitch_encoder", "style_encoder")
    for part in parts[2:]:
        use[part] = lambda path, part=part: ("encode", clip, "--codec", str(codec_with(part, path)))

    def codec_with(part: str, path: Path) -> Path:
        codec = folder / f"codec {len(list(folder.iterdir()))}"
        codec.mkdir()
        for name in parts:
            (codec / name).symlink_to(path if name == part else CODEC / name)
        return codec

    sources = {"model": material / "model", **{name: CODEC / name for name in parts}}
    for kind, source in sources.items():
        tensors = safetensors.torch.load_file(source / "model.safetensors")
        names = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
        name = names[len(names) // 2]

        good = tensors[name]
        changes = {
            "missing tensor": {key: tensor for key, tensor in tensors.items() if key != name},
            "renamed tensor": {"x" if key == name else key: tensor for key, tensor in tensors.items()},
            "unexpected tensor": tensors | {"extra.weight": torch.zeros(2)},
            "misshapen tensor": tensors | {name: torch.zeros(3, 3, 3)},
            "NaN tensor": tensors | {name: torch.full_like(good, float("nan"))},
            "infinite tensor": tensors | {name: torch.full_like(good, float("inf"))},
            "one NaN": tensors | {name: good.flatten().index_fill(0, torch.tensor([0]), torch.nan).view(good.shape)},
            "no tensors": {},
        }
        for label, changed in changes.items():
            target = copy_of(source, folder / f"{kind} {label}")
            safetensors.torch.save_file(changed, target / "model.safetensors", metadata={"format": "pt"})
            yield Case(f"{kind}: {label}", use[kind](target))
        indexes = {"garbage": "{", "nested": "[" * 9000, "list": "[]", "no map": "{}", "map": {"weight_map": 3}}
        indexes |= {
            f"shard {shard!r}": {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
            for shard in (
                str(source / "model.safetensors"),
                "../model.safetensors",
                "nowhere.safetensors",
                3,
                None,
                "",
            )
        }
        for label, index in indexes.items():
            target = copy_of(source, folder / f"{kind} index {label.replace('/', ' ')[:30]}")
            (target / "model.safetensors").unlink()
            text = index if isinstance(index, str) else json.dumps(index)
            (target / "model.safetensors.index.json").write_text(text)
            yield Case(f"{kind}: index {label}", use[kind](target))
        content = (source / "model.safetensors").read_bytes()
        files = [(f"cut to {share}", content[: int(share * len(content))]) for share in (0.0, 0.001, 0.5, 0.999)]
        files += [("garbage", bytes(range(256)) * 40), ("huge header", struct.pack("<Q", 2**60) + content[8:])]
        for label, data in files:
            target = copy_of(source, folder / f"{kind} weights {label}")
            (target / "model.safetensors").write_bytes(data)
            yield Case(f"{kind}: weights {label}", use[kind](target))
        config = json.loads((source / "config.json").read_text())
        configs = {
            "empty": "",
            "list": "[]",
            "garbage": "\x00",
            "nested": "[" * 9000,
            "another type": {"model_type": "bert"},
        }
        configs["no type"] = {key: value for key, value in config.items() if key != "model_type"}
        for key in ("hidden_size", "num_hidden_layers", "vocab_size", "num_units", "unit_offset", "layer"):
            if key in config:
                configs |= {f"{key}={value!r}": config | {key: value} for value in (-1, 10**6, "many", None)}
        for label, value in configs.items():
            target = copy_of(source, folder / f"{kind} config {label}")
            (target / "config.json").write_text(value if isinstance(value, str) else json.dumps(value))
            yield Case(f"{kind}: config {label}", use[kind](target))
        for label, other in {"another model": ASSETS / "codec" / "style_encoder", "a file": material / "clip.wav",
                             "nothing": folder / "nowhere", "an empty folder": folder}.items():  # fmt: skip
            if kind in ("model", "speech_encoder", "vocoder"):  # Other parts may be missing.
                yield Case(f"{kind}: {label}", use[kind](other))

    def is_unchanged(printed: str) -> bool:
        return Path(out).read_bytes() == continuation

    assert call(use["model"](material / "model"))[0] == 0
    continuation = Path(out).read_bytes()
    for name in sorted(file.name for file in (material / "model").glob("*.json")):
        for label, text in {"empty": "", "garbage": "\x00", "list": "[]", "nested": "[" * 9000}.items():
            target = copy_of(material / "model", folder / f"model {name} {label}")
            (target / name).write_text(text)
            # Generation is set by the command; transformers passes over an unreadable file of its defaults.
            is_optional = name == "generation_config.json"
            yield Case(
                f"model: {name} {label}", use["model"](target), is_unchanged if is_optional else None, is_optional
            )


def manifest_cases(material: Path, folder: Path) -> Iterator[Case]:
    def evaluate(path):
        out = folder / f"scores {len(list(folder.iterdir()))}"
        return ("evaluate", "--model", str(material / "model"), "--suite", str(path), "--output-dir", str(out))

    good = pq.read_table(SUITES / "lexical.parquet").slice(0, 4)
    rows = good.to_pylist()
    for column in good.column_names:
        for value in (None, "", "../../x", "a/b", -1, [], [-1], [10**4], "x" * 5000):
            changed = copy.deepcopy(rows)
            for row in changed if column in ("suite", "encoder") else changed[:1]:
                row[column] = value
            path = folder / f"{column} {len(list(folder.iterdir()))}.parquet"
            try:
                pq.write_table(pa.Table.from_pylist(changed, schema=good.schema), path)
            except (pa.ArrowException, TypeError):
                continue  # The file format itself refuses it.
            # Texts and labels may hold anything that names no file; pitch and style are not read by this model.
            free = column.endswith(("text", "pitch", "style")) or column in (
                "id",
                "phenomenon",
                "group",
                "voice",
                "story",
            )
            accepts = free or column == "encoder" or value == "x" * 5000
            scores_all = (lambda out: "n = 4" in out) if accepts else None
            yield Case(f"{column} = {str(value)[:20]!r}", evaluate(path), scores_all, may_be_refused=accepts)
    lines = {
        "outside": {"id": "1", "positive": "/etc/hostname", "negative": "b.wav"},
        "above": {"id": "1", "positive": "../clip.wav", "negative": "b.wav"},
        "suite above": {"id": "1", "positive": "a.wav", "negative": "b.wav", "suite": "../../x"},
        "suite with NUL": {"id": "1", "positive": "a.wav", "negative": "b.wav", "suite": "a\0b"},
        "file with NUL": {"id": "1", "positive": "a\0.wav", "negative": "b.wav"},
        "missing files": {"id": "1", "positive": "a.wav", "negative": "b.wav"},
        "no columns": {"a": 1},
    }
    for name, row in lines.items():
        (folder / name).mkdir()
        (folder / name / "manifest.jsonl").write_text(json.dumps(row) + "\n")
        yield Case(f"manifest {name}", evaluate(folder / name))
    for name, content in {"garbage": b"\x00" * 100, "empty": b"", "text": b"hello"}.items():
        (folder / f"{name}.parquet").write_bytes(content)
        yield Case(f"manifest {name}", evaluate(folder / f"{name}.parquet"))


def flag_cases(material: Path, folder: Path) -> Iterator[Case]:
    for verb in VERBS:
        parser = build_parser([verb])._subparsers._group_actions[0].choices[verb]
        for action in parser._actions:
            option = action.option_strings[-1] if action.option_strings else None
            if option in (None, "--help", "--config", "--print-config") or action.nargs == 0:
                continue
            values = ("inf", "nan", "-1", "1e99", "9" * 40) if action.type and action.type is not Path else ()
            values += ("nonsense",) if action.choices else ()
            for value in values:
                yield Case(f"{verb} {option} {value[:6]}", (verb, option, value))
                yield Case(f"{verb} {option}={value[:6]}", (verb, f"{option}={value}"))
            yield Case(f"{verb} {option} without a value", (verb, option))
        yield Case(f"{verb} --unknown", (verb, "--unknown"))
        yield Case(f"{verb} --config of nothing", (verb, f"--config={folder / 'nowhere.yaml'}"))


def recipe_cases(material: Path, folder: Path) -> Iterator[Case]:
    for name, verb in {
        "nano/distillation": "distill",
        "nano/corpus": "prepare",
        "nano/vocoder": "train-vocoder",
    }.items():
        recipe = load_recipe(name)
        text = yaml.safe_dump(recipe, sort_keys=False)
        for key in recipe:
            texts = {"twice": f"{text}{key}: 1\n", "misspelt": text.replace(f"{key}:", f"{key}x:", 1)}
            texts["in capitals"] = text.replace(f"{key}:", f"{key.upper()}:", 1)
            texts["as a list"] = yaml.safe_dump([recipe])
            for mistake, changed in texts.items():
                file = folder / f"{len(list(folder.iterdir()))}.yaml"
                file.write_text(changed)
                yield Case(f"{name} {key} {mistake}", (verb, str(file), "--print-config"))
        for override in (
            "x=1",
            "=",
            "seed",
            "seed=",
            "seed=one",
            "seed.x=1",
            "training.x=1",
            "seed=[",
            "seed=" + "[" * 5000,
        ):
            yield Case(f"{name} override {override[:20]}", (verb, name, override, "--print-config"))
        for path in list(leaves(recipe)):
            if not path or "styles" in path:
                continue
            for value in ({"a": 1}, float("nan"), [[]], "tru"):
                is_free = path[-1] in ("lr_scheduler_kwargs",) or "lr_scheduler_kwargs" in path
                is_name = isinstance(value, str) and path[-1] in (
                    "lr_scheduler_type",
                    "train_sampling_strategy",
                    "preset",
                )
                if is_free or is_name:
                    continue
                file = folder / f"{len(list(folder.iterdir()))}.yaml"
                file.write_text(yaml.safe_dump(changed_at(recipe, path, value)))
                yield Case(f"{name} {path} = {value!r}", (verb, str(file), "--print-config"))


def path_cases(inputs: Path, folder: Path) -> Iterator[Case]:
    """Every path among the arguments of every long command, replaced by one that cannot be used."""
    (folder / "text").write_text("hello")
    (folder / "empty").mkdir()
    (folder / "garbage").mkdir()
    for name in ("config.json", "model.safetensors", "manifest.json", "shard-00000.parquet", "a.wav", "settings.json"):
        (folder / "garbage" / name).write_bytes(b"\x00\xff" * 50)
    (folder / "loop").symlink_to(folder / "loop")
    bad_inputs = [str(folder / name) for name in ("nowhere", "empty", "garbage", "loop", "n" * 300)] + ["", "\0"]
    bad_outputs = ["", "\0", str(folder / "text" / "below a file"), str(folder / ("n" * 300)), "/proc/nowhere/out"]
    for command in COMMANDS:
        arguments = command.command_line(inputs)
        for number, argument in enumerate(arguments):
            is_input = argument.startswith(str(inputs))
            is_output = argument.partition("/")[0] == "output"
            own = [str(folder / "text")] if is_input and Path(argument).is_dir() else []
            own += [str(folder / "text")] if is_output and "gguf" not in command.name.lower() else []
            for bad in (bad_inputs + own) * is_input + (bad_outputs + own) * is_output:
                output = folder / f"output {len(list(folder.iterdir()))}"
                changed = [str(output) if value == "output" else value for value in arguments]
                changed[number] = bad
                where = arguments[number - 1] if arguments[number - 1].startswith("--") else "argument"
                yield Case(
                    f"{command.name} {where} {bad[-20:]!r}", tuple(changed), output=None if is_output else output
                )


def damage_cases(inputs: Path, folder: Path) -> Iterator[Case]:
    """Every folder of data that the long commands read, with one of its files damaged."""
    for command in COMMANDS:
        arguments = command.command_line(inputs)
        for number, argument in enumerate(arguments):
            if not argument.startswith(str(inputs)) or Path(argument).name not in ("corpus", "units", "suites"):
                continue
            for file in sorted(
                path for path in Path(argument).iterdir() if path.suffix in (".json", ".parquet", ".safetensors")
            ):
                content = file.read_bytes()
                for label, data in {"empty": b"", "cut": content[: len(content) // 2], "nested": b"[" * 9000}.items():
                    target = copy_of(Path(argument), folder / f"data {len(list(folder.iterdir()))}")
                    (target / file.name).write_bytes(data)
                    changed = [str(folder / f"output {len(list(folder.iterdir()))}") if value == "output" else value
                               for value in arguments]  # fmt: skip
                    changed[number] = str(target)
                    yield Case(f"{command.name} {file.name} {label}", tuple(changed))


FAMILIES = {"audio": audio_cases, "tokens": token_cases, "checkpoints": checkpoint_cases, "manifests": manifest_cases,
            "flags": flag_cases, "recipes": recipe_cases}  # fmt: skip
COMMAND_FAMILIES = {"paths": path_cases, "damaged data": damage_cases}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_of_bad_inputs_is_refused_in_one_line_or_read_right(family, material, tmp_path, try_all):
    draw = random.Random(family)
    problems = try_all(family, (case for case in FAMILIES[family](material, tmp_path) if draw.random() < SAMPLE))
    assert not problems, problems


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", FAMILIES)
def test_every_bad_input_is_refused_in_one_line_or_read_right(family, material, tmp_path, try_all, counted):
    problems = try_all(family, FAMILIES[family](material, tmp_path))
    assert not problems, problems
    assert counted[family] >= 50


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", COMMAND_FAMILIES)
def test_every_bad_path_and_damaged_file_is_refused_in_one_line(family, inputs, tmp_path, try_all, counted):
    problems = try_all(family, COMMAND_FAMILIES[family](inputs, tmp_path))
    assert not problems, problems
    assert counted[family] >= 50
