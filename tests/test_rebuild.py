"""The steps that rebuild every shipped artefact: each can be said to the command line, and finds what it reads."""

from pathlib import Path

import pytest

from tinywave.cli.main import build_parser
from tinywave.cli.rebuild import steps_of_codec, steps_of_prosody, steps_of_units
from tinywave.stages.parsing import load_recipe

FOLDER = Path("/rebuilt")
STEPS = [
    list(map(str, step)) for steps in (steps_of_units, steps_of_codec, steps_of_prosody) for step in steps(FOLDER)
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step[0]} {Path(step[-1]).name}")
def test_a_step_is_a_command_with_a_packaged_recipe(step):
    arguments = build_parser(step).parse_args(step)
    assert arguments.verb == step[0]
    if hasattr(arguments, "recipe"):
        assert load_recipe(arguments.recipe)


def test_a_step_reads_what_earlier_steps_wrote_and_writes_a_folder_of_its_own():
    written = set()
    for step in STEPS:
        output = Path(step[step.index("--output-dir") + 1])
        inputs = [Path(word) for word in step if word.startswith(str(FOLDER)) and Path(word) != output]
        for path in inputs:
            assert any(path == made or path in made.parents for made in written), (
                f"{step} reads {path} before it is made"
            )
        assert output not in written
        written.add(output)
