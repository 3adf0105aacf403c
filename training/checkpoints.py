"""Where an interrupted training run continues."""

from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint


def last_checkpoint(output_dir: Path) -> str | None:
    """Newest checkpoint of a run, or None where it has none yet."""
    return get_last_checkpoint(str(output_dir)) if output_dir.is_dir() else None
