"""Uvicorn with an end of our own: nobody enters any more, those inside are answered first."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from drivekd.deploy.serving.app import Door


class Server(uvicorn.Server):
    """A server that says when it listens, and ends well when told to.

    Args:
        door: whose endpoints are served.
        ready: called as soon as clients can connect.
        drain: longest time in which what is inside is finished after SIGTERM or SIGINT [s].
    """

    def __init__(self, door: Door, ready: Callable[[], None], drain: float) -> None:
        super().__init__(
            uvicorn.Config(
                door.app(),
                http="h11",
                ws="none",
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(drain) + 5,
            )
        )
        self._door, self._ready, self._drain = door, ready, drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals end the server, and let that be all: uvicorn's own way ends the process."""
        before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
        for each in before:
            signal.signal(each, self.handle_exit)
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Let nobody in any more; a second SIGINT waits for nobody."""
        self._door.draining = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is inside, within the time for it."""
        late = asyncio.get_running_loop().call_later(self._drain, self._door.line.stop)
        await super().shutdown(sockets)
        late.cancel()
