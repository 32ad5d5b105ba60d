"""Models of the hub when it cannot be reached: what its cache holds is read, without waiting."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants, errors, get_session, snapshot_download

#: How long the hub may take to answer [s], and for how long it is not asked again [s].
PATIENCE, MEMORY = 5.0, 60.0


def at_hand(name: str) -> str:
    """A hub id as it is while the hub answers, else the folder of its cache; folders as they are.

    Left alone with a silent hub, huggingface_hub repeats each request for 23 s, for every file of a
    model, and has no setting for that.

    Raises:
        ValueError: the hub is silent and its cache does not hold the model.
    """
    if Path(name).exists() or _answers(int(time.monotonic() / MEMORY)):
        return name
    try:
        return snapshot_download(name, local_files_only=True)
    except errors.HFValidationError:  # no id: transformers says so without asking
        return name
    except errors.LocalEntryNotFoundError as error:
        raise ValueError(
            f"model {name!r} cannot be read: there is no such folder, and the hub cannot be "
            f"reached ({constants.ENDPOINT}; its cache does not hold the model); expected a folder "
            "with config.json, a hub id or world:NAME"
        ) from error


@lru_cache(maxsize=1)
def _answers(moment: int) -> bool:
    """Whether the hub says anything at all, an error included, by the way its own client takes."""
    del moment  # part of the key only: a network may come back
    failures: Any = errors  # of httpx or of its successor, by release
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except (OSError, failures.HTTPError):  # OSError: offline mode
        return False
    return True
