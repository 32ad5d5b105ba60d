"""Our chat server in a thread of this process, with a tiny model that can be slowed and counted."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from drivekd.deploy.serving.app import Door
from drivekd.deploy.serving.batching import Line
from drivekd.deploy.serving.draining import Server
from drivekd.deploy.serving.limits import Limits
from drivekd.deploy.serving.serve import listening
from drivekd.deploy.serving.served import served
from drivekd.models.vlm import Vlm, language_model

NAME = "tiny"


@dataclass
class Service:
    """A running server: where it is, its door, and the shape [rows, tokens] of every step."""

    url: str
    door: Door
    stop: Callable[[], None]
    steps: list[tuple[int, int]] = field(default_factory=list)
    pause: float = 0.0

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    def quiet(self) -> bool:
        """Whether nobody is inside and no picture is left."""
        return eventually(lambda: not self.door.inside and not list(self.door.place.iterdir()))


@contextmanager
def serving(
    vlm: Vlm, place: Path, limits: Limits | None = None, key: str = "", drain: float = 5
) -> Iterator[Service]:
    limits = limits or Limits()
    line = Line(served(vlm, NAME, limits.max_context), limits.max_batch)
    door = Door(line, limits, key, place)
    ready = threading.Event()
    server = Server(door, ready.set, drain)
    server.capture_signals = nullcontext  # type: ignore[method-assign]  # signals go to the process

    def stop() -> None:
        server.should_exit = True

    with listening("127.0.0.1", 0) as listener:
        service = Service(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", door, stop)

        def count(module: object, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            service.steps.append(tuple(named["inputs_embeds"].shape[:2]))
            time.sleep(service.pause)

        hook = language_model(vlm).register_forward_pre_hook(count, with_kwargs=True)
        thread = threading.Thread(target=server.run, args=([listener],))
        line.start()
        thread.start()
        try:
            assert ready.wait(30)
            yield service
        finally:
            stop()
            thread.join(30)
            line.stop()
            line.join(60)
            hook.remove()
    assert not thread.is_alive()


def eventually(holds: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether something comes true within a time."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
    return holds()


def noise(name: str, size: tuple[int, int] = (48, 48)) -> bytes:
    """A PNG file of noise."""
    rng = np.random.default_rng(sum(name.encode()))
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*content: Any) -> list[dict[str, Any]]:
    """A conversation of one turn; a sole text stands for itself."""
    sole = content[0] if len(content) == 1 and isinstance(content[0], str) else list(content)
    return [{"role": "user", "content": sole}]
