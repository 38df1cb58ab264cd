"""Find a model in the Hugging Face cache of this machine by its name on the hub; nothing is ever downloaded.

A name is ``org/model``, or ``org/model@revision`` as the hub's own paths spell a branch, a tag or a commit. The cache
is that of huggingface_hub (``HF_HUB_CACHE``, ``HF_HOME``), which takes half a second to import: ``checkpoint`` imports
this module only where an argument is no path of a file or directory.
"""

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from planner.errors import CheckpointError


def snapshot(name: str) -> Path:
    """Return the directory of a model in the cache; raise CheckpointError with the command that downloads it."""
    repository, _, revision = name.partition("@")
    try:
        found = snapshot_download(
            repository, revision=revision or None, local_files_only=True, allow_patterns=["config.json"]
        )
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{name}: no directory, and not in the Hugging Face cache {constants.HF_HUB_CACHE}: {how_to_get(name)}"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{name}: no directory, and no name of a model on the hub: {error}") from error
    return Path(found)


def how_to_get(name: str) -> str:
    """Return what to do to have a model in the cache, with the command."""
    repository, _, revision = name.partition("@")
    return f"download it with `hf download {repository}{f' --revision {revision}' if revision else ''}`"
