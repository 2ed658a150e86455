"""Where a saved graft lies: a folder, a Trainer's checkpoint, or the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from memgraft.data.batch import KEY
from memgraft.errors import GraftError, StorageError

CHECKPOINT_FOLDER = KEY
"""Under a checkpoint, one folder for each graft by name."""
KEPT_FOLDER = "graft"
"""The graft's folder in what a training keeps, beside the recipient's."""
_MANIFEST = "graft.json"
_FILES = (_MANIFEST, "graft.safetensors", "README.md")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def graft_folder(path: str | os.PathLike[str], name: str | None) -> Path:
    """The folder with ``graft.json`` that ``path`` means.

    Args:
        path: that folder, one that has it as ``graft/`` (what ``memgraft train`` keeps), a checkpoint that holds
            grafts, or ``"user/name"`` on the hub.
        name: which graft of a checkpoint, if it holds several.

    Raises:
        GraftError: a checkpoint without a graft, or with several and no name.
        StorageError: the hub (or its cache, offline) does not have it.
    """
    folder = Path(path)
    for place in (folder, folder / KEPT_FOLDER):
        if (place / _MANIFEST).exists():
            return place
    if not folder.exists() and isinstance(path, str) and _REPOSITORY.fullmatch(path):
        return _fetched(path)
    found = {place.parent.name: place.parent for place in folder.glob(f"{CHECKPOINT_FOLDER}/*/{_MANIFEST}")}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        if name in found:
            return found[name]
        raise GraftError(f"{folder} holds the grafts {', '.join(sorted(found))}: say which with name=")
    if (folder / "trainer_state.json").exists():
        raise GraftError(
            f"{folder}: a Trainer's checkpoint without a graft folder: train with callbacks=[GraftCallback()], which "
            "writes one. If the checkpoint holds the whole model, graft() a recipient as it was trained and resume "
            "from it"
        )
    return folder


def _fetched(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:  # the hub's errors are OSErrors, those of names ValueErrors
        raise StorageError(f"{repository}: no such folder here, and the hub does not give it: {error}") from error
