"""Folders that are Spaces as they stand: the demo, and each module of `eval/metrics`."""

from importlib.resources import files
from pathlib import Path

from huggingface_hub import RepoCard

APP, CARD = "app.py", "README.md"


def demo_folder() -> Path:
    """The folder of the demo; `ValueError` where it is no Space."""
    return check_space(Path(str(files("tinywave"))) / "spaces")


def metric_folders() -> list[Path]:
    """The folder of each metric, by name; `ValueError` for one that is no Space, and where there are none."""
    folder = Path(str(files("tinywave"))) / "eval" / "metrics"
    metrics = sorted(path.parent for path in folder.glob(f"*/{CARD}"))
    if not metrics:
        raise ValueError(f"{folder} holds no metrics; expected a folder with {CARD} for each")
    return [check_space(metric) for metric in metrics]


def check_space(folder: Path) -> Path:
    """Return a folder that the Hub can run as a Gradio app; `ValueError` that says what is missing."""
    missing = [name for name in (CARD, APP, "requirements.txt") if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} is no Space: found no {', '.join(missing)}")
    data = RepoCard.load(folder / CARD, ignore_metadata_errors=True).data.to_dict()
    if data.get("sdk") != "gradio" or data.get("app_file", APP) != APP:
        raise ValueError(
            f"{folder / CARD} says sdk {data.get('sdk')!r} and app_file {data.get('app_file')!r}; expected 'gradio' "
            f"and {APP!r} in its front matter"
        )
    return folder
