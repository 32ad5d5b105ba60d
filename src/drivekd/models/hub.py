"""Models of the hub while it cannot be reached: read from its cache, without waiting."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants, errors, get_session, snapshot_download

#: longest wait for the hub's answer [s], and time until it is asked again [s]
PATIENCE, MEMORY = 5.0, 60.0


def at_hand(name: str) -> str:
    """Return a hub id while the hub answers, else the folder of its cache; leave folders alone.

    With a silent hub, huggingface_hub repeats each request for 23 s, for every file of a model, and
    has no setting for that.

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
    """Tell whether the hub answers its client at all, be it by an error."""
    del moment  # part of the key only: a network may come back
    failures: Any = errors  # of httpx or of its successor, by release
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except (OSError, failures.HTTPError):  # OSError: offline mode
        return False
    return True
