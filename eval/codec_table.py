"""The report of a codec as Markdown tables, and the page of the documentation that shows them."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..data.storage import atomic_file, write_json
from .codec_measures import is_measured
from .codec_resynthesis import BASE, EXPRESSIVE, ORIGINAL, WITHOUT_PITCH
from .codec_units import OWN, TEACHER
from .results_table import check_markers, format_count, format_percent, suite_to_label, write_between_markers

NOT_MEASURED = "not measured"
PICTURE = "codec_f0.svg"
_SPOKEN = {
    ORIGINAL: "recording",
    BASE: "units alone",
    WITHOUT_PITCH: "units and style",
    EXPRESSIVE: "units, pitch and style",
}
_EQUALITIES = {
    "batch_1_equals_8": "one at a time = in batches of 8 (all tokens)",
    "streamed_equals_whole": "streamed = whole (units)",
    "vocoder_streamed_equals_whole": "streamed = whole (vocoder predictions)",
    "saved_equals_loaded": "saved = loaded (all tokens)",
    "saved_waveform_equals_loaded": "saved = loaded (waveform)",
}


def format_share(record: Mapping) -> str:
    """Write a share in percent, with its interval where it has one.

    >>> format_share({"value": 0.75, "ci95": [0.69, 0.8049], "n": 240})
    '75.0 % [69.0, 80.5]'
    >>> format_share({"value": 0.5, "n": 240}), format_share({"not_measured": "no phones"})
    ('50.0 %', 'not measured')
    """
    if not is_measured(record):
        return NOT_MEASURED
    interval = record.get("ci95")
    brackets = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return format_percent(record["value"]) + brackets


def format_number(record: Mapping, decimals: int = 2) -> str:
    """Write a number, with its interval where it has one.

    >>> format_number({"value": 0.8123, "ci95": [0.79, 0.83], "n": 20})
    '0.81 [0.79, 0.83]'
    >>> format_number({"value": 0.01234, "n": 5}, decimals=4)
    '0.0123'
    """
    if not is_measured(record):
        return NOT_MEASURED
    interval = record.get("ci95")
    brackets = f" [{interval[0]:.{decimals}f}, {interval[1]:.{decimals}f}]" if interval else ""
    return f"{record['value']:.{decimals}f}{brackets}"


def format_equality(record: Mapping) -> str:
    """Write whether tokens are equal, or how far apart numbers are.

    >>> format_equality({"equal": True, "num_different": 0, "num_tokens": 900})
    'yes (900 tokens)'
    >>> format_equality({"equal": False, "num_different": 2, "num_tokens": 900})
    'no, 2 of 900 tokens differ'
    >>> format_equality({"max_difference": 0.0, "scale": 0.9}), format_equality({"max_difference": 2e-6, "scale": 7.5})
    ('yes, bitwise', 'up to 2.0e-06, of numbers up to 7.5')
    """
    if not is_measured(record):
        return NOT_MEASURED
    if "equal" in record:
        if record["equal"]:
            return f"yes ({record['num_tokens']} tokens)"
        return f"no, {record['num_different']} of {record['num_tokens']} tokens differ"
    if record["max_difference"] is None:
        return "no, the lengths differ"
    if record["max_difference"] == 0:
        return "yes, bitwise"
    return f"up to {record['max_difference']:.1e}, of numbers up to {record['scale']:.2g}"


def report_to_markdown(report: Mapping) -> str:
    """Return all tables of what [`CodecReport`] measured."""
    parts = (_encoder_table, _resynthesis_table, _style_tables, _check_table, _size_table, _unmeasured_list)
    return "\n\n".join(text for part in parts if (text := part(report)))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _encoder_table(report: Mapping) -> str:
    rows = []
    for name, record in report["units"].items():
        rows.append([f"Frames with the teacher's unit, {_set_label(report, name)}",
                     format_share(record["frame_accuracy"]), ""])  # fmt: skip
    for measure, label in (("pnmi", "PNMI"), ("phone_purity", "Phone purity")):
        for name, record in report["units"].items():
            if is_measured(record[measure]):
                values = [format_number(record[measure][encoder], 3) for encoder in (OWN, TEACHER)]
                rows.append([f"{label}, {_set_label(report, name)}", *values])
    distance, speed = report["voice_distance"], report["speed"]
    label = f"Unit edit distance between voices (n = {distance[OWN]['n']} pairs)"
    rows.append([label, *(format_number(distance[encoder], 3) for encoder in (OWN, TEACHER))])
    values = [format_number(speed[name], 4) for name in ("speech_encoder", "teacher")]
    rows.append([f"CPU seconds per second of audio, one thread (median of {speed['speech_encoder']['n']})", *values])
    return _table(["Speech encoder", "of the codec", "its teacher"], rows)


def _resynthesis_table(report: Mapping) -> str:
    sets = report["resynthesis"]

    def rows_of(measure: str, label: str, names: Sequence[str], write: Callable[[Mapping], str]) -> Iterator[list]:
        for name in names:
            records = [record[measure] for record in sets.values()]
            cells = [write(row[name]) if is_measured(row) and name in row else NOT_MEASURED for row in records]
            yield [f"{label}, {_SPOKEN[name]}", *cells]

    rows = [
        *rows_of("word_error_rate", "Word error rate", (ORIGINAL, BASE, EXPRESSIVE), format_share),
        *rows_of("mean_opinion_score", "DistillMOS (1 to 5)", (ORIGINAL, BASE, EXPRESSIVE), format_number),
        *rows_of("f0_correlation", "F0 correlation", (BASE, WITHOUT_PITCH, EXPRESSIVE), format_number),
        ["F0 correlation, decoded pitch tokens",
         *(format_number(record["pitch_code_correlation"]) for record in sets.values())],
        *rows_of("style_kept", "Style tokens preserved", (BASE, EXPRESSIVE), format_share),
    ]  # fmt: skip
    return _table(["Recording -> tokens -> recording", *(_set_label(report, name) for name in sets)], rows)


def _style_tables(report: Mapping) -> str:
    tables = []
    for name, record in report["resynthesis"].items():
        accuracy = record["style_accuracy"]
        if is_measured(accuracy):
            heard = [variant for variant in (BASE, EXPRESSIVE) if variant in accuracy]
            columns = [(ORIGINAL, "window"), (ORIGINAL, "utterance"), *((variant, "window") for variant in heard)]
            head = [f"Style accuracy, {_set_label(report, name)}"]
            head += [f"{kind}s, {_SPOKEN[variant]}" for variant, kind in columns]
            styles = accuracy[ORIGINAL]["window"]
            rows = [[f"{style} (n = {styles[style]['n']})",
                     *(format_share(accuracy[variant][kind][style]) for variant, kind in columns)]
                    for style in styles]  # fmt: skip
            tables.append(_table(head, rows))
    return "\n\n".join(tables)


def _check_table(report: Mapping) -> str:
    golden, speed = report["golden_vector"], report["speed"]
    rows = [[label, format_equality(report["invariances"][name])] for name, label in _EQUALITIES.items()]
    frames = " / ".join(str(golden["frames"].get(name, "-")) for name in golden["expected_frames"])
    expected = " / ".join(map(str, golden["expected_frames"].values()))
    rows.append([f"Unit / pitch / style frames of {golden['num_samples']:,} samples (published: {expected})", frames])
    rows.append(["Tokens of streams with the published run counts", str(golden["reference_tokens"])])
    for name, label in (("encode", "encoding to all tokens"), ("decode", "decoding from tokens")):
        rows.append([f"CPU seconds per second of audio, {label}, one thread", format_number(speed[name], 4)])
    return _table(["Consistency checks and cost", ""], rows)


def _size_table(report: Mapping) -> str:
    rows = [
        [suite_to_label(name), format_count(size["parameters"]), f"{size['bytes'] / 1e6:.1f} MB"]
        for name, size in report["sizes"].items()
    ]
    return _table(["Part", "parameters", "weights"], rows)


def _set_label(report: Mapping, name: str) -> str:
    return f"{suite_to_label(name)} (n = {report['sets'][name]['n']})"


def _unmeasured_list(report: Mapping) -> str:
    reasons: dict[str, list[str]] = {}
    for path, reason in _unmeasured(report, ()):
        reasons.setdefault(reason, []).append(" ".join(path).replace("_", " "))
    if not reasons:
        return ""
    lines = [f"- {'; '.join(paths)}: {reason}." for reason, paths in reasons.items()]
    return "\n".join(["Not measured:", "", *lines])


def _unmeasured(record: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield where in a report something was not measured, and why."""
    if isinstance(record, Mapping):
        if not is_measured(record):
            yield path, record["not_measured"]
        for name, value in record.items():
            yield from _unmeasured(value, (*path, name))


def write_page(report: Mapping, picture: Path, page: str | Path) -> None:
    """Put the tables between the results markers of a page, and the report and its picture beside it.

    Args:
        report: of [`CodecReport`]; becomes `codec.json`.
        picture: SVG file; becomes `codec_f0.svg`.
        page: Markdown file with both markers.

    Raises `ValueError` for a page without markers.
    """
    page = Path(page)
    check_markers(page)
    with atomic_file(page.with_name(PICTURE)) as partial:
        shutil.copyfile(picture, partial)
    write_json(report, page.with_name("codec.json"))
    write_between_markers(report_to_markdown(report), page)
