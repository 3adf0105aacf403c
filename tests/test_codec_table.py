"""The page of the codec shows what its report says, and names things that exist."""

import ast
import json
import re
from pathlib import Path

from tinywave.cli.main import VERBS
from tinywave.eval.codec_table import format_share, report_to_markdown
from tinywave.eval.results_table import END_MARKER, START_MARKER

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "codec.md"
WITHOUT_REPORT = "*(not measured yet)*"
WRITTEN = {"codec.json", "codec_f0.svg"}


def test_the_page_holds_the_tables_of_its_report():
    shown = PAGE.read_text(encoding="utf-8").split(START_MARKER)[1].split(END_MARKER)[0].strip()
    report = PAGE.with_name("codec.json")
    expected = report_to_markdown(json.loads(report.read_text(encoding="utf-8"))) if report.is_file() else None
    assert shown == (expected or WITHOUT_REPORT)


def test_the_page_names_things_that_exist():
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"tinywave ([a-z]+(?:-[a-z]+)*) ", text)) <= {*VERBS, "import"}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        ast.parse(block)
    targets = set(re.findall(r"\]\((?!https?:|#)([^)#]+)", text))
    # The command that writes the tables writes these two beside the page.
    assert [target for target in targets - WRITTEN if not (PAGE.parent / target).exists()] == []


def test_what_has_no_value_is_never_shown_as_a_number():
    assert format_share({"not_measured": "no phones", "value": 0.5}) == "not measured"
