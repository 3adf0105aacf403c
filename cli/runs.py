"""How the verbs that train begin: a finished run is left as it is, an interrupted one continues."""

import os
import sys
from collections.abc import Iterable, Mapping

from ..training.run_record import RunRecord


def start_run(
    output_dir: str | os.PathLike,
    stage: str,
    recipe: Mapping,
    inputs: Mapping[str, str | os.PathLike | Iterable[str | os.PathLike] | None],
) -> RunRecord | None:
    """Open the run of an output folder, and return its record; where it is finished, say so and return None.

    Arguments and errors as of [`RunRecord`].
    """
    record = RunRecord(output_dir, stage, {"recipe": recipe}, inputs)
    if not record.is_finished:
        return record
    print(record.describe(), file=sys.stderr)
    print(output_dir)
    return None
