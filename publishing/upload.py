"""Folders to repositories on the Hub, each in one commit."""

import os
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

STAMP = ".publish.json"  # what `model_repository` notes in the folder of a repository
# What lies around in a source folder and belongs in no repository.
IGNORED = (STAMP, "__pycache__/*", "**/__pycache__/*", "*.pyc", ".gradio/*", "*.partial")


class UploadError(OSError):
    """The Hub could not be reached, or refused."""


def check_repo_id(repo_id: str) -> None:
    """Raise `ValueError` for what is no "owner/name" of the Hub."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no repository id: {error}; expected owner/name") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"found the repository id {repo_id!r} without an owner; expected owner/name")


def check_token() -> None:
    """Raise `ValueError` where no access token is found, before anything is made for an upload."""
    if not get_token():
        raise ValueError(
            "found no access token of the Hub; put one with write permission into HF_TOKEN or run `hf auth login`, or "
            "look at what would be uploaded with --dry-run"
        )


def upload_repository(
    folder: str | os.PathLike, repo_id: str, *, repo_type: str = "model", private: bool = False, message: str
) -> str:
    """Make a repository where it is not there yet, and upload a folder into it in one commit.

    Args:
        folder: what is uploaded, but for caches and `STAMP`.
        repo_id: "owner/name".
        repo_type (`str`, default "model"): "model", or "space" for a Gradio app.
        private (`bool`, default False): of a repository that is new; one that is there stays as it is.
        message: of the commit.

    Returns:
        the address of the repository.

    Raises [`UploadError`] where the Hub cannot be reached or refuses.
    """
    api = HfApi()
    try:
        url = api.create_repo(
            repo_id,
            repo_type=repo_type,
            private=private or None,
            exist_ok=True,
            space_sdk="gradio" if repo_type == "space" else None,
        )
        api.upload_folder(
            repo_id=repo_id,
            repo_type=repo_type,
            folder_path=Path(folder),
            commit_message=message,
            ignore_patterns=list(IGNORED),
        )
    except OfflineModeIsEnabled as error:
        raise UploadError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it, or use --dry-run") from error
    except (HTTPError, OSError) as error:
        raise UploadError(
            f"could not upload {folder} to {repo_id}: {error}; what was made is kept, and the same command goes on"
        ) from error
    return str(url)
