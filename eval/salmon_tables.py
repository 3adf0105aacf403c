"""SALMon as the Hub has it (`slprl/SALMon`): parquet tables with the recordings inside, a folder for each part.

Columns: `task`, the part; `ind`, the number of the pair in its part; `positive_audio` and `negative_audio`, structs of
the `bytes` of an audio file and its `path`. Tables are `<part>/train-*.parquet`, and `<part>/train/*.parquet` in the
branch that the Hub converts, where `all`, `all_alignment` and `all_consistency` hold the same pairs again.
"""

import io
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .aggregation import SALMON_PARTS
from .suites import HALVES, SuiteError

AUDIO_COLUMNS = tuple(f"{half}_audio" for half in HALVES)
COLUMNS = ("task", "ind", *AUDIO_COLUMNS)
JOINED_PARTS = ("all", "all_alignment", "all_consistency")
"""Folders of the converted branch in which the pairs of several parts stand again."""


@dataclass(frozen=True, order=True)
class StoredRecording:
    """A recording inside of a table.

    Args:
        table (`Path`): the parquet file.
        row (`int`): counted from 0.
        column (`str`): holds structs of `bytes` and `path`.
    """

    table: Path
    row: int
    column: str

    def __str__(self) -> str:
        return f"{self.table}, row {self.row + 1} ({self.column})"

    def absolute(self) -> "StoredRecording":
        """The same, with the absolute path of the table."""
        return StoredRecording(self.table.absolute(), self.row, self.column)

    def stat(self) -> os.stat_result:
        """Size and time of change of the table."""
        return self.table.stat()

    def open(self) -> io.BytesIO:
        """The audio file, for reading, with a name for messages; empty where the table holds none."""
        group, row = _place_of_row(str(self.table), self.row)
        stored = _read_column(str(self.table), group, self.column)[row].as_py()
        file = io.BytesIO((stored or {}).get("bytes") or b"")
        file.name = str(self)
        return file


@lru_cache(maxsize=2)
def _read_column(table: str, group: int, column: str) -> pa.ChunkedArray:
    """A column of one row group, kept while its neighbours are read."""
    return pq.ParquetFile(table).read_row_group(group, columns=[column])[column]


def _place_of_row(table: str, row: int) -> tuple[int, int]:
    metadata = pq.read_metadata(table)
    for group in range(metadata.num_row_groups):
        if row < metadata.row_group(group).num_rows:
            return group, row
        row -= metadata.row_group(group).num_rows
    raise SuiteError(f"{table} has no row {row + 1} any more; it was changed while it was read.")


def salmon_tables(path: Path) -> list[Path]:
    """The tables of a file, of a folder of one part, or of the data set; joined ones where there are no others."""
    if path.is_file():
        return [path] if _is_salmon_table(path) else []
    for names in (("", *SALMON_PARTS), JOINED_PARTS[:1]):
        folders = [path / name / split for name in names for split in ("", "train")]
        files = sorted({file for folder in folders for file in folder.glob("*.parquet")})
        if tables := [file for file in files if _is_salmon_table(file)]:
            return tables
    return []


def _is_salmon_table(file: Path) -> bool:
    """Whether a file says by a name of its columns, or by its folder, that it is a table of SALMon."""
    if file.name[0] == "." or file.suffix.lower() != ".parquet":
        return False
    try:
        return bool(set(AUDIO_COLUMNS) & set(pq.read_schema(file).names))
    except (pa.ArrowException, OSError):
        return bool({file.parent.name, file.parent.parent.name} & {*SALMON_PARTS, *JOINED_PARTS})


def read_labels(table: Path) -> list[tuple[str, int | None]]:
    """Part and number of every row, without reading any audio.

    Raises [`SuiteError`] for a file that cannot be read, and for columns that are missing or hold something else.
    """
    try:
        schema = pq.read_schema(table)
        if missing := [name for name in COLUMNS if name not in schema.names]:
            raise SuiteError(f"lacks the columns {missing}; expected {list(COLUMNS)}")
        for name in AUDIO_COLUMNS:
            kind = schema.field(name).type
            if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
                raise SuiteError(f"has {name} of type {kind}; expected the bytes of an audio file and its path")
        rows = pq.read_table(table, columns=["task", "ind"]).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise SuiteError(f"is not a readable parquet file ({error}); download it again") from error
    return [(str(row["task"]), row["ind"]) for row in rows]
