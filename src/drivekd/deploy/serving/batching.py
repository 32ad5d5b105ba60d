"""The waiting line and its one worker: what waits runs together, in one thread.

Requests that come while a batch runs wait for its end; they do not join it. A client that leaves is
dropped at the next token.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from drivekd.deploy.serving.protocol import Finish, Refused, stopping
from drivekd.deploy.serving.reply_text import ReplyText
from drivekd.deploy.serving.served import Served
from drivekd.models.encode import Encoded
from drivekd.models.rows import Rows, begin, follow, keep
from drivekd.models.sampling import Sampling, drawn

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a reply; the last one says why it ended."""

    text: str
    finish: Finish | None = None


@dataclass(eq=False, slots=True)
class Job:
    """A request that waits or runs.

    Attributes:
        encoded: the conversation.
        folder: of its pictures.
        reply: the answer so far.
        sampling: how tokens are chosen.
        seed: of the draws.
        tell: takes pieces of the reply, or why there is none; called by the worker's thread.
        gone: the client has left, or heard the end.
    """

    encoded: Encoded
    folder: Path
    reply: ReplyText
    sampling: Sampling
    seed: int
    tell: Callable[[Piece | Refused], object]
    gone: bool = False

    def choose(self, logits: Float[Tensor, "1 V"]) -> Tensor:
        """The next token [1]: it depends on nothing but these logits and the request's seed."""
        if self.sampling.temperature == 0:
            return logits.argmax(-1)
        # The stream from its beginning, as `sampling.choice` draws it; 8 bytes a token.
        number = np.random.default_rng(self.seed).random(len(self.reply.tokens) + 1)[-1:]
        return drawn(logits, torch.from_numpy(number).to(logits.device), self.sampling)

    def hear(self, token: int) -> bool:
        """Take a token and hand on what it settles; whether the reply goes on."""
        if self.gone:
            return False
        text = self.reply.add(token)
        if text or self.reply.finish:
            self.tell(Piece(text, self.reply.finish))
        self.gone = self.reply.finish is not None
        return not self.gone

    def forget_pictures(self) -> None:
        """Remove their files: what was seen of them is in the cache."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def end(self, why: Refused | None = None) -> None:
        """Let it go; whoever still waits for it is told why."""
        self.forget_pictures()
        if why is not None and not self.gone:
            self.gone = True
            self.tell(why)


@dataclass(eq=False)
class Line:
    """Jobs in the order of their arrival, and the thread that does them.

    Attributes:
        served: the model.
        max_batch: jobs that run side by side.
    """

    served: Served
    max_batch: int
    _waiting: deque[Job] = field(default_factory=deque)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stopped: bool = False
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the worker."""
        self._thread = threading.Thread(target=self._work, name="drivekd-serve", daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Let a job wait for its turn."""
        with self._changed:
            if not self._stopped:
                self._waiting.append(job)
                self._changed.notify()
                return
        job.end(stopping())

    def stop(self) -> None:
        """Do nothing more: whoever waits is told so, at the next token."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def join(self, seconds: float) -> bool:
        """Wait for the worker's end, so long; whether it came."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def _work(self) -> None:
        while jobs := self._take():
            with torch.no_grad():
                self._do(jobs)

    def _take(self) -> list[Job]:
        """The next jobs, as soon as there is one; none after the end."""
        with self._changed:
            while True:
                for job in [job for job in self._waiting if job.gone]:
                    self._waiting.remove(job)
                    job.end()
                if self._stopped:
                    while self._waiting:
                        self._waiting.popleft().end(stopping())
                    return []
                if self._waiting:
                    many = min(self.max_batch, len(self._waiting))
                    return [self._waiting.popleft() for _ in range(many)]
                self._changed.wait()

    def _do(self, jobs: list[Job]) -> None:
        """Answer some jobs; those that cannot be answered are told so."""
        rows: Rows | None = None
        try:
            rows = begin(self.served.vlm, [job.encoded for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                self._failed(jobs, error)
                return
        if rows is None:  # out of the handler, whose traceback holds what was begun
            for job in jobs:  # too much for all may do for each
                self._do([job])
            return
        for job in jobs:
            job.forget_pictures()
        try:
            self._continue(rows, list(jobs))
        except Refused as why:
            for job in jobs:
                job.end(why)
        except Exception as error:
            self._failed(jobs, error)
        finally:
            for job in jobs:
                job.end()

    def _continue(self, rows: Rows, jobs: list[Job]) -> None:
        vlm = self.served.vlm
        while True:
            if self._stopped:
                raise stopping()
            logits = rows.logits(vlm)
            if not bool(logits.isfinite().all()):
                raise ArithmeticError(f"model {vlm.source!r}: logits that are not finite")
            tokens = torch.cat([job.choose(logits[k : k + 1]) for k, job in enumerate(jobs)])
            heard = [job.hear(token) for job, token in zip(jobs, tokens.tolist(), strict=True)]
            staying = [k for k, goes_on in enumerate(heard) if goes_on]
            if not staying:
                return
            if len(staying) < len(jobs):
                keep(rows, staying)
                jobs, tokens = [jobs[k] for k in staying], tokens[staying]
            follow(vlm, rows, tokens)

    def _failed(self, jobs: list[Job], error: Exception) -> None:
        _LOG.error("%d requests could not be answered", len(jobs), exc_info=error)
        for job in jobs:
            job.end(Refused(500, "the model could not answer; the server's log says why"))
