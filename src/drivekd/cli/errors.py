"""The end of a command: its result, or one line about what went wrong and an exit code.

A user's mistake ends in one line on stderr and exit code 2, an interrupt in exit code 130;
`--debug` or DRIVEKD_DEBUG=1 shows the traceback instead.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import typer

from drivekd.files.extras import advice

USER_MISTAKE, INTERRUPTED = 2, 130

#: what typer raises for a wrong command line; it has no public name in every version of typer
_USAGE: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def run(app: typer.Typer, given: list[str]) -> NoReturn:
    """Run a command line and end the process with its exit code."""
    debug = "--debug" in given or os.environ.get("DRIVEKD_DEBUG") == "1"
    given = [word for word in given if word != "--debug"]  # at any place
    if debug:
        sys.exit(_run(app, given))
    try:
        sys.exit(_run(app, given))
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted; what was complete by then is kept", INTERRUPTED)
    except _USAGE as error:
        _fail(_usage(error), USER_MISTAKE)
    except OSError as error:
        _fail(_os_error(error), USER_MISTAKE)
    except ValueError as error:  # pydantic's ValidationError is one
        _fail(str(error), USER_MISTAKE)
    except ModuleNotFoundError as error:
        said = advice(error)
        if said is None:
            raise
        _fail(said, USER_MISTAKE)
    except (ArithmeticError, MemoryError, RuntimeError) as error:
        if not _foreseen(error):
            raise
        _fail(str(error) or "out of memory", 1)


def _run(app: typer.Typer, given: list[str]) -> int | None:
    """Run one verb; without any the help is shown, but nothing was done."""
    code: int | None = app(given or ["--help"], prog_name="drivekd", standalone_mode=False)
    if code == INTERRUPTED:  # newer versions of typer turn the interrupt into this
        raise KeyboardInterrupt
    return code if given else USER_MISTAKE


def _foreseen(error: BaseException) -> bool:
    """Tell whether we raised it, so that its message explains more than a traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", "")) if trace is not None else ""
    return isinstance(error, MemoryError) or module.partition(".")[0] == "drivekd"


def _usage(error: Any) -> str:
    """Say what is wrong with the command line, and whose help explains it."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "drivekd"
    said = error.format_message()
    return f"{said}{'' if said.endswith(('.', '?', '!')) else '.'} See `{command} --help`."


def _os_error(error: OSError) -> str:
    """Say what the system refused, and of which file."""
    if error.strerror is None:  # one of ours, or a library's: it is a sentence already
        return str(error)
    if error.filename and isinstance(error, FileExistsError | NotADirectoryError):
        place = Path(error.filename)
        place = next((path for path in (place, *place.parents) if path.is_file()), place)
        return f"{place} is a file, and a folder is needed there: choose another place"
    if isinstance(error, IsADirectoryError):
        return f"{error.filename} is a folder, and a file is needed there: choose another name"
    named = " → ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{error.strerror}: {named}" if named else error.strerror


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"drivekd: error: {' '.join(message.split())}", err=True)
    sys.exit(code)
