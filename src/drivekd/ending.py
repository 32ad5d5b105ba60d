"""How a command ends: a user's mistake in one line and exit code 2, an interrupt with 130."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

USER_MISTAKE, INTERRUPTED = 2, 130

#: what typer raises for a wrong command line; it has no public name in every version of typer
_USAGE: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def end(work: Callable[[], int | None], *, debug: bool) -> NoReturn:
    """Do what a command does and end the process; with `debug` errors keep their traceback."""
    if debug:
        sys.exit(work())
    try:
        sys.exit(work())
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted; the same command continues where that is possible", INTERRUPTED)
    except _USAGE as error:
        _fail(_usage(error), USER_MISTAKE)
    except OSError as error:
        _fail(_os_error(error), USER_MISTAKE)
    except ValueError as error:  # pydantic's ValidationError is one
        _fail(str(error), USER_MISTAKE)
    except (ArithmeticError, MemoryError, RuntimeError) as error:
        if not _foreseen(error):
            raise
        _fail(str(error) or "out of memory", 1)


def _foreseen(error: BaseException) -> bool:
    """Whether we raised it ourselves, so that its message explains it better than a traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", "")) if trace is not None else ""
    return isinstance(error, MemoryError) or module.partition(".")[0] == "drivekd"


def _usage(error: Any) -> str:
    """What is wrong with the command line, and whose help explains it."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "drivekd"
    return f"{error.format_message()} See `{command} --help`."


def _os_error(error: OSError) -> str:
    """What the system refused, and of what file."""
    if error.strerror is None:  # one of ours, or a library's: it is a sentence already
        return str(error)
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{error.filename} is a file, and a folder is needed there: choose another place"
    named = " → ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{error.strerror}: {named}" if named else error.strerror


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"drivekd: error: {' '.join(message.split())}", err=True)
    sys.exit(code)
