"""One place for what every test shares: shapes checked at run time, seeds, threads, real data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# Before anything imports them: one thread (two on a busy two-core machine are ten times slower),
# and no look-ups on a model hub.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "Agg")

from jaxtyping import install_import_hook

# Checks every annotation, shapes included, of whatever is imported from drivekd from here on.
install_import_hook("drivekd", "typecheck.checked")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from drivekd.models import tiny  # noqa: E402
from drivekd.models.vlm import Vlm  # noqa: E402

torch.set_num_threads(1)

SEED = 20260128
#: folders whose session fixtures cost more than their tests: one worker runs all of them
TOGETHER = ("tests/world", "tests/deploy/serving")


def scope_of(nodeid: str) -> str:
    """What one worker runs as a piece: a file, since fixtures are made once a file."""
    file = nodeid.split("::")[0]
    return next((folder for folder in TOGETHER if file.startswith(folder)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = scope_of
    return scheduler


@pytest.fixture(autouse=True)
def seed() -> int:
    """Start every test from the same random state."""
    torch.manual_seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  third-party code draws from the global stream
    return SEED


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where tensors live: `DRIVEKD_TEST_DEVICE=cuda` runs the same suite on a GPU."""
    return torch.device(os.environ.get("DRIVEKD_TEST_DEVICE", "cpu"))


@pytest.fixture(scope="session", params=sorted(tiny.KINDS))
def vlm(request: pytest.FixtureRequest, device: torch.device) -> Vlm:
    """A random model whose outputs vary; tests that change it make their own."""
    made = tiny.tiny_vlm(request.param, initializer_range=0.15, vision_hidden=32, image_size=48)
    made.model.to(device)
    return made


@pytest.fixture(scope="session")
def require_all() -> bool:
    """Whether a missing outside part is a failure (DRIVEKD_REQUIRE_ALL=1) or a reason to skip."""
    return os.environ.get("DRIVEKD_REQUIRE_ALL") == "1"


@pytest.fixture(scope="session")
def real_data(require_all: bool) -> Path:
    """The folder of real driving data named by DRIVEKD_REAL_DATA; skips where there is none."""
    folder = os.environ.get("DRIVEKD_REAL_DATA", "")
    if folder and Path(folder).is_dir():
        return Path(folder)
    reason = (
        f"DRIVEKD_REAL_DATA={folder!r} is no folder: set it to the folder that holds drivelm/, "
        "drivekd/ and drivebench/"
    )
    if require_all:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def no_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line without DRIVEKD_DEBUG, whatever the developer's shell says."""
    monkeypatch.delenv("DRIVEKD_DEBUG", raising=False)
