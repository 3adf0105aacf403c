"""Self-contained HTML pages from the templates of this folder."""

import base64
import os
import re
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..data.audio_io import waveform_to_flac_bytes
from ..data.storage import atomic_file


def write_page(template: str, values: dict, path: str | os.PathLike) -> Path:
    """Write one page of `templates/` so that `path` is complete or what it was before."""
    environment = Environment(
        loader=PackageLoader("tinywave.eval", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = keep_together
    html = environment.get_template(template).render(**values)
    with atomic_file(path) as partial:
        partial.write_text(html, encoding="utf-8")
    return Path(path)


def keep_together(text: str) -> str:
    """Put no-break spaces where a line must not end: before a percent sign, inside brackets.

    >>> keep_together("75.0 % [69.0, 80.5]")
    '75.0\\xa0% [69.0,\\xa080.5]'
    """
    return re.sub(r" (?=%)|[\[(][^\])]*[\])]", lambda found: found[0].replace(" ", "\xa0"), text)


def audio_data_uri(waveform: np.ndarray, sampling_rate: int) -> str:
    """Mono audio as a `data:` address of a FLAC file."""
    return "data:audio/flac;base64," + base64.b64encode(waveform_to_flac_bytes(waveform, sampling_rate)).decode(
        "ascii"
    )
