"""Recipes: the packaged ones are what they say, and every kind of mistake is one line that names file and key."""

import copy
import importlib
from argparse import Namespace
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from tinywave.cli.main import VERBS, main
from tinywave.stages.parsing import RecipeError, check_recipe, find_recipe, load_recipe, parse_yaml, read_recipe
from tinywave.stages.recipes import DistillationRecipe
from tinywave.training.arguments import DistillationArguments

RECIPES = {
    "nano/corpus": "prepare", "nano/codec_corpus": "prepare", "nano/encoder_corpus": "prepare",
    "nano/people": "prepare", "nano/unseen_voices": "prepare", "nano/units": "fit-units",
    "nano/suites": "build-suites", "nano/teacher": "train",
    "nano/story_teacher": "train", "nano/interleaved_teacher": "train", "nano/expressive_teacher": "train",
    "nano/correction": "correct", "7b_correction_base": "correct", "7b_correction_interleaved": "correct",
    "nano/distillation": "distill", "7b_to_2b_base": "plan", "7b_to_2b_expressive": "plan",
    "7b_to_2b_interleaved": "cache-teacher", "nano/parallel_heads": "train-heads", "nano/pitch": "train-pitch",
    "nano/style": "train-style", "nano/vocoder": "train-vocoder", "nano/hifigan": "train-hifigan",
    "nano/speech_encoder": "train-speech-encoder", "nano/hubert_speech_encoder": "train-speech-encoder",
    "nano/quickstart": "quickstart", "ablation": "ablate",
}  # fmt: skip
# Blocks whose keys belong to classes of transformers that take any key.
FREE = {"backbone_config", "lr_scheduler_kwargs", "generation", "activation_checkpointing_kwargs", "student"}


def argument_of(verb):
    return importlib.import_module(f"tinywave.cli.{verb.replace('-', '_')}").RECIPE


def check(values, name):
    argument = argument_of(RECIPES[name])
    kind = argument.recipe_class
    check_recipe(values, kind if isinstance(kind, type) else kind(values), f"{name}.yaml", **argument.classes)


@pytest.mark.parametrize("name", RECIPES)
def test_a_packaged_recipe_is_accepted_and_is_what_its_file_says(name):
    found = argument_of(RECIPES[name]).read(Namespace(recipe=name, overrides=[]))
    assert found == yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))


def test_every_packaged_recipe_is_listed_here():
    folder = Path(str(files("tinywave.recipes")))
    packaged = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
    assert packaged - set(RECIPES) == {"accelerate/ddp", "accelerate/deepspeed_zero3", "accelerate/fsdp2"}


def blocks(values, path=()):
    """Every mapping of a recipe that is not free, with its path."""
    if isinstance(values, dict):
        if not set(path) & FREE:
            yield path, values
        for key, value in values.items():
            yield from blocks(value, (*path, key))
    elif isinstance(values, list):
        for index, value in enumerate(values[:2]):
            yield from blocks(value, (*path, index))


def at(values, path):
    for key in path:
        values = values[key]
    return values


def mutations(values):
    """Recipes with one mistake: (what it is, the recipe)."""
    for path, block in blocks(values):
        changed = copy.deepcopy(values)
        at(changed, path)["unknwon_key"] = 1
        yield f"unknown key in {'.'.join(map(str, path)) or 'the recipe'}", changed
        for key, value in block.items():
            if key in FREE or set(path) & FREE:
                continue
            wrong = [{"a": 1}, float("nan"), float("inf")]
            wrong += ["text"] if isinstance(value, (int, float)) else []
            wrong += [-(10**12)] if isinstance(value, int) and not isinstance(value, bool) else []
            wrong += [3, None, []] if isinstance(value, (str, list, dict)) else []
            for replacement in wrong:
                changed = copy.deepcopy(values)
                at(changed, path)[key] = replacement
                yield f"{'.'.join(map(str, (*path, key)))} = {replacement!r}", changed


# Null leaves a setting out, an empty list of styles has none, and maps of names take any.
ACCEPTED = ("= None", "report_to", "logging_dir", "variants", "runs", "styles", "= []")


@pytest.mark.parametrize("name", RECIPES)
def test_every_mistake_is_refused_in_one_line_that_names_the_file(name):
    passed, count = [], 0
    for mistake, values in mutations(load_recipe(name)):
        count += 1
        try:
            check(values, name)
        except RecipeError as error:
            assert str(error).startswith(f"{name}.yaml: ") and "\n" not in str(error), (mistake, str(error))
        else:
            passed.append(mistake)
    assert count > 5
    assert [mistake for mistake in passed if not any(word in mistake for word in ACCEPTED)] == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds NoneType; expected a mapping"),
        ("- a\n", "holds list"),
        ("a: 1\na: 2\n", "the key 'a' occurs twice"),
        ("a: {b: 1, b: 2}\n", "the key 'b' occurs twice"),
        ("a: [1\n", "is not a YAML file"),
        ("a: &x [*x]\n", "Circular reference"),
        ("a: 2020-01-01\n", "not JSON serializable"),
        ("? [1, 2]\n: 3\n", "is no text"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("a: " + "[" * 5000 + "]" * 5000, "recursion|nested"),
    ],
)
def test_text_that_is_no_recipe_is_refused(text, reason):
    with pytest.raises(RecipeError, match=f"mine.yaml .*({reason})"):
        parse_yaml(text, "mine.yaml")


@pytest.mark.parametrize(("text", "value"), [("3e-3", 0.003), ("1E5", 1e5), ("-2.5e+1", -25.0), ("1_000", 1000),
                                             ("0.5", 0.5), ("e3", "e3"), ('"3e-3"', "3e-3")])  # fmt: skip
def test_numbers_are_read_as_numbers(text, value):
    found = parse_yaml(f"a: {text}", "mine.yaml")["a"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfe\x00a", "is not text in UTF-8"),
        (b"seed: \x00", "is not a YAML file"),
        (b" " * 2**21, "has more than"),
    ],
)
def test_files_that_are_no_text_are_refused(content, reason, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=f"mine.yaml {reason}"):
        load_recipe(tmp_path / "mine.yaml")


@pytest.mark.parametrize("name", ["nowhere", "../setup", "/etc/passwd\0", "", "nano"])
def test_a_recipe_that_is_not_there_is_refused(name):
    with pytest.raises((FileNotFoundError, RecipeError)):
        load_recipe(name)


def test_overrides_take_the_place_of_settings():
    overrides = ["training.max_steps=10", "training.learning_rate=3e-3", "streams=[unit, pitch]", "packing=true"]
    found = read_recipe("nano/distillation", DistillationRecipe, overrides, training=DistillationArguments)
    assert found["training"]["max_steps"] == 10 and found["training"]["learning_rate"] == 0.003
    assert found["streams"] == ["unit", "pitch"] and found["packing"] is True
    assert found["training"]["bf16"] is True


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("training.max_step=10", "training.max_step is unknown; the nearest known key is max_steps"),
        ("max_length=ten", "max_length is 'ten'"),
        ("max_length", "expected an override such as training.max_steps=10"),
        ("=3", "expected an override"),
        ("seed.value=3", "which is no group of settings"),
        ("training.learning_rate=.inf", "expected a finite number"),
        ("seed=[1", "is not a YAML file"),
    ],
)
def test_wrong_overrides_are_refused(override, reason):
    with pytest.raises(RecipeError, match=reason):
        read_recipe("nano/distillation", DistillationRecipe, [override], training=DistillationArguments)


def test_an_unknown_key_is_one_line_with_the_nearest_known_key(tmp_path, capsys):
    path = tmp_path / "x.yaml"
    path.write_text(find_recipe("nano/distillation").read_text() + "packng: true\n")
    assert main(["distill", str(path), "--units", str(tmp_path), "--output-dir", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"tinywave: {path}: packng is unknown; the nearest known key is packing"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", sorted(set(RECIPES.values())))
def test_the_checked_recipe_is_printed_and_read_again(verb, tmp_path, capsys):
    name = next(name for name, of in RECIPES.items() if of == verb)
    chosen = ["--recipe", name] if verb == "quickstart" else [name]
    assert main([verb, *chosen, "--print-config"]) == 0
    printed = capsys.readouterr().out
    path = tmp_path / "printed.yaml"
    path.write_text(printed)
    assert main([verb, *(["--recipe", str(path)] if verb == "quickstart" else [str(path)]), "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    assert yaml.safe_load(printed).items() >= load_recipe(name).items()


def test_every_verb_with_a_recipe_checks_it():
    with_recipe = {
        verb for verb in VERBS if hasattr(importlib.import_module(f"tinywave.cli.{verb.replace('-', '_')}"), "RECIPE")
    }
    assert with_recipe == set(RECIPES.values())
