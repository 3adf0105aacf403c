"""Tables of benchmarks: the numbers of a record in their cells, and pages that hold what the records say."""

import json
import shutil

import pytest

from tinywave.benchmarks.tables import PAGES, RESULTS, TABLES, decode_table, distillation_table, write_tables


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_a_row_of_decoding_holds_its_numbers():
    row = {"engine": "torch-int8", "cpu_seconds_per_token": 0.1319, "vs_transformers_bf16": 3.46}
    row |= {"tokens_per_second": 6.54, "efficiency": 0.851, "peak_mb": 3312.0}
    table = cells(decode_table([row, {"engine": "onnx-int4", "not_measured": "no memory"}]))
    assert table[2] == ["PyTorch, 8 bits", "0.132", "3.5x", "6.5", "85 %", "3.3 GB"]
    assert table[3][:2] == ["ONNX Runtime, 4 bits", "not measured"] and len(table) == 4


def test_steps_are_compared_with_the_logits_alone_at_their_length():
    def row(variant, seq_len, seconds, peak_mb):
        samples = [{"seconds": seconds}]
        return {"variant": variant, "seq_len": seq_len, "cpu_seconds": seconds, "peak_mb": peak_mb, "samples": samples}

    rows = [row("logits", 256, 2.0, 100.0), row("logits_hidden", 256, 3.0, 150.0), row("logits", 512, 4.0, 400.0)]
    rows += [row("full_logit_kd", 512, 1.0, 50.0), row("chunked_logit_kd", 512, 2.0, 25.0)]
    rows += [{"variant": "logits_hidden", "seq_len": 512, "peak_mb": None, "not_measured": "out of memory"}]
    table = cells(distillation_table({"rows": rows}))
    assert table[3] == ["+ hidden states, T = 256", "3.0", "1.50x", "150", "1.50x"]
    assert table[4][1:] == ["4.0", "1.00x", "400", "1.00x"]
    assert table[6] == ["logit KD in chunks, T = 512", "2.0", "2.00x", "25", "0.50x"]
    assert table[7] == ["+ hidden states, T = 512", "not measured", "", "", ""]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_hold_what_the_records_say(page, tmp_path):
    copy = tmp_path / page.name
    shutil.copy(page, copy)
    write_tables([copy])
    assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8"), "python -m tinywave.benchmarks.tables"


def test_every_record_is_shown_or_says_so(tmp_path):
    pages = [tmp_path / "page.md"]
    text = "".join(f"<!-- {name}:start -->\n<!-- {name}:end -->\n" for name in TABLES)
    pages[0].write_text(text)
    write_tables(pages, tmp_path)
    assert pages[0].read_text().count("*(not measured)*") == len(TABLES)
    write_tables(pages, RESULTS)
    measured = [name for name in TABLES if (RESULTS / f"{name}.json").is_file()]
    assert measured and pages[0].read_text().count("*(not measured)*") == len(TABLES) - len(measured)
    for name in measured:
        assert json.loads((RESULTS / f"{name}.json").read_text())


def test_a_place_for_an_unknown_table_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("<!-- weather:start -->\n<!-- weather:end -->\n")
    with pytest.raises(ValueError, match="has a place for 'weather'; expected one of decode, distill"):
        write_tables([tmp_path / "page.md"])
