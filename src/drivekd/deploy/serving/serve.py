"""A small chat server for one model, where vLLM or SGLang cannot run.

It speaks OpenAI's protocol. Production traffic belongs on vLLM or SGLang: they let requests join a
running batch and keep their memory in pages; this one does neither.
"""

from __future__ import annotations

import errno
import os
import shlex
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from drivekd.deploy.serving.limits import Limits
from drivekd.files.extras import require

if TYPE_CHECKING:
    from drivekd.models.vlm import Vlm

#: after SIGTERM what is inside is finished within this time [s]
DRAIN_SECONDS = 30


def serve(
    model: str | Path,
    limits: Limits | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key_env: str | None = None,
    served_name: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> None:
    """Serve a model until SIGTERM or SIGINT; what runs then is finished.

    Args:
        model: a folder, a hub id or `world:NAME`.
        limits: how much is taken.
        host: address to listen on; the default one is reached from this machine only.
        port: 0 takes a free one, which is printed.
        key_env: the environment variable with the key that clients must send; None asks for none.
        served_name: what clients call the model; by default as it is given here.
        device: where it runs.
        dtype: of its weights: "float32" or "bfloat16".

    Raises:
        ValueError: FastAPI or uvicorn is not installed, the port is taken, the key is not set, or
            there is no such model.
    """
    require("serve")
    from drivekd.evaluate.chat import read_key

    limits, key = limits or Limits(), read_key(key_env)
    with (
        listening(host, port) as listener,
        tempfile.TemporaryDirectory(prefix="drivekd-serve-") as place,
    ):
        import torch

        from drivekd.deploy.serving.app import LOCAL, Door
        from drivekd.deploy.serving.batching import Line
        from drivekd.deploy.serving.draining import Server
        from drivekd.deploy.serving.served import served
        from drivekd.models.vlm import load

        vlm = load(model, device=device, dtype=getattr(torch, dtype), answering=True)
        line = Line(served(vlm, served_name or str(model), limits.max_context), limits.max_batch)
        door = Door(line, limits, key, Path(place), local=host in LOCAL)
        told = greeting(vlm, line.served.name, listener, limits, bool(key))
        server = Server(door, lambda: print(told, flush=True), DRAIN_SECONDS)  # noqa: T201
        line.start()
        try:
            server.run([listener])
        finally:
            line.stop()
            ended = line.join(2.0)
    if not ended:  # in the middle of a prompt, which cannot be interrupted
        os._exit(0)


def listening(host: str, port: int) -> socket.socket:
    """A socket at an address, which nobody can connect to yet.

    Raises:
        ValueError: the address is not this machine's, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ValueError(f"--host {host}: {error.strerror}") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} of {host} is taken: choose another --port") from error
        raise ValueError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return found


def greeting(vlm: Vlm, name: str, listener: socket.socket, limits: Limits, keyed: bool) -> str:
    """What is said as soon as clients can connect."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    room = f"{limits.max_batch} requests at a time, {limits.max_waiting} more wait"
    lines = [
        f"serving {vlm.source} as {name!r} at http://{shown}:{port}/v1: {room}; stop with Ctrl-C",
        *production(vlm),
    ]
    if not keyed and not host.startswith("127.") and host != "::1":
        lines.append("without --key-env everybody who reaches this address may use the model")
    return "\n".join(lines)


def production(vlm: Vlm) -> list[str]:
    """Where production traffic belongs."""
    from drivekd.deploy.export.card import commands
    from drivekd.models.vlm import locate

    lines = commands(shlex.quote(locate(vlm.source)), vlm.family.name)
    return [
        "production traffic belongs on one of these (not run here):",
        *(f"  {x}" for x in lines),
    ]
