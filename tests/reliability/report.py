"""Write docs/reliability.md and docs/reliability.json from the records of a test run.

pytest tests/reliability -m "exhaustive or not exhaustive" --records outputs/reliability
python -m tinywave.tests.reliability.report outputs/reliability
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tinywave.data.storage import atomic_file, write_json

DOCS = Path(__file__).parents[2] / "docs"
PAGE = """# Reliability

`make reliability` runs every long command on small inputs, kills it, gives it bad inputs and bad surroundings, and
writes this page and `reliability.json`. The moments of the kills and the mistakes in the inputs are drawn with fixed
seeds. All numbers count cases; a problem is a difference from what is stated above its table.

## Killed commands

Each command is killed at random moments: before one of its changes to a file, as a file gets its first bytes, and
after a random time. It is then repeated until it ends. What it has written must equal, byte for byte, what an
uninterrupted run writes, without temporary files. SIGTERM must end a command with exit code 143 and SIGINT with 130,
in one line that says that it was interrupted. Not compared are `training_args.bin`, a pickle whose bytes depend on
which equal strings are one object, and wall times: `seconds.json`, `report.html` and the fields `seconds` and
`units_per_second` of the quickstart. Finished commands are repeated and must change nothing.

{kills}

## Bad inputs

Each input is a good one with one mistake. The command must refuse it in one line with exit code 2 and leave no
output, or, where the input can still be used, write the right result. A traceback, exit code 70, a run of more than
120 s and a wrong result are problems.

{bad_inputs}

## Bad surroundings

Two runs in one folder: one of them may be refused, and the result must be that of one run. A full disk: the command
names the disk as the reason, complete files stay complete, and with more room the same command finishes. A read-only
folder is refused before any work. Odd output paths contain spaces, other scripts, dots, dashes and links. A clock
that goes back: a killed run continues with files that are dated in the future and in reverse order.

{environment}
"""


def read_records(folder: Path) -> dict[str, list[dict]]:
    """Return the records of all processes of a test run by their kind."""
    records = defaultdict(list)
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            records[record.pop("kind")].append(record)
    return records


def to_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table whose first column is text."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def summarize(records: Mapping[str, list[dict]]) -> dict[str, list[dict]]:
    """Return the rows of the three tables, each with a last row of totals."""
    kills = []
    for command in sorted({record["command"] for record in records["kill"]}):
        own = {
            kind: [row for row in records[kind] if row["command"] == command]
            for kind in records
            if kind != "bad_input"
        }
        signals = Counter(row["signal"] for row in own["kill"])
        kills.append(
            {
                "command": command,
                "kills": len(own["kill"]),
                "inside a checkpoint": sum(row["is_inside_checkpoint"] for row in own["kill"]),
                **{name: signals[name] for name in ("SIGKILL", "SIGTERM", "SIGINT")},
                "repeated when finished": len(own.get("repeat", ())),
                "problems": sum(len(row["problems"]) for kind in ("continued", "repeat") for row in own.get(kind, ())),
            }
        )
    bad_inputs = []
    for family in sorted({record["family"] for record in records["bad_input"]}):
        own = [row for row in records["bad_input"] if row["family"] == family]
        bad_inputs.append({"family": family, "cases": len(own), "problems": sum(bool(row["problems"]) for row in own)})
    environment = []
    for case in dict.fromkeys(record["case"] for record in records["environment"]):
        own = [row for row in records["environment"] if row["case"] == case]
        environment.append(
            {
                "case": case,
                "commands": len({row["command"] for row in own}),
                "cases": len(own),
                "problems": sum(bool(row["problems"]) for row in own),
            }
        )
    tables = {"kills": kills, "bad_inputs": bad_inputs, "environment": environment}
    for rows in tables.values():
        if rows:
            first, *numbers = rows[0]
            rows.append({first: "all", **{name: sum(row[name] for row in rows) for name in numbers}})
    return tables


def main(argv: list[str] | None = None) -> None:
    """Write the page and its JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, help="folder that `pytest --records` wrote")
    parser.add_argument("--output-dir", type=Path, default=DOCS, help="folder of reliability.md and reliability.json")
    arguments = parser.parse_args(argv)
    tables = summarize(read_records(arguments.records))
    if not all(tables.values()):
        parser.error(f"{arguments.records} lacks records of {[name for name, rows in tables.items() if not rows]}")
    write_json(tables, arguments.output_dir / "reliability.json")
    shown = {name: to_table(list(rows[0]), [row.values() for row in rows]) for name, rows in tables.items()}
    with atomic_file(arguments.output_dir / "reliability.md") as partial:
        partial.write_text(PAGE.format(**shown), encoding="utf-8")


if __name__ == "__main__":
    main()
