"""Exchange checkpoints with the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ossicle.errors import CheckpointError

FILES = ["ossicle.json", "*.safetensors", "README.md"]
"""Files of a checkpoint that are downloaded; the base models come from repositories of their own."""


def download(repo_id: str) -> Path:
    """Return the local folder of the checkpoint ``repo_id``, downloaded if it is not in the cache.

    Raises `CheckpointError` if there is neither a folder nor a repository of this name, or the hub is not reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repo_id, allow_patterns=FILES))
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repo_id}: there is no such folder, and the hub has no such repository (or it is private: log in with "
            "`hf auth login`)"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{repo_id}: there is no such folder, and the hub was not reached to look there; check the path, or the "
            "network"
        ) from error


def upload(model: Any, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload ``model`` with its card to ``repo_id`` and return the address; see `SpeechLLM.push_to_hub`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        api = HfApi(token=token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload an Ossicle checkpoint")
        except (HfHubHTTPError, OSError, ValueError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{repo_id}: the hub did not take the checkpoint ({first}); check id and login"
            ) from error
    return f"https://huggingface.co/{repo_id}"
