"""Optional packages: where one is absent, an error names the extra that installs it."""

from __future__ import annotations

from importlib.util import find_spec

#: extra of pyproject.toml → the modules that it brings and the code imports
EXTRAS = {
    "world": ("highway_env", "panda3d", "direct"),
    "hub": ("datasets",),
    "tensorboard": ("tensorboard",),
    "serve": ("fastapi", "uvicorn"),
    "quantise": ("bitsandbytes",),
    "torchjd": ("torchjd",),
    "video": ("imageio_ffmpeg",),
}


def present(extra: str) -> bool:
    return all(find_spec(module) is not None for module in EXTRAS[extra])


def require(extra: str) -> None:
    """Refuse to go on without the modules of an extra.

    Raises:
        ModuleNotFoundError: naming what is absent and the command that installs it.
    """
    absent = [module for module in EXTRAS[extra] if find_spec(module) is None]
    if absent:
        raise ModuleNotFoundError(_advice(" and ".join(absent), extra), name=absent[0])


def advice(error: ModuleNotFoundError) -> str | None:
    """What to install for an import that failed; None where no extra would help."""
    module = (error.name or "").partition(".")[0]
    return next((_advice(module, name) for name, held in EXTRAS.items() if module in held), None)


def _advice(absent: str, extra: str) -> str:
    return f"{absent} not found: pip install 'drivekd[{extra}]'"
