"""What runs programs, whatever isolates it: a port that takes jobs and gives answers, and an end.

Each kind of isolation has a class of its own (`vm.py`, `gvisor.py`, `pods.py`); how a program is
handed in and how its answer is believed is here, once.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vauban.agents.frames import (
    READY,
    Job,
    Port,
    Reason,
    Result,
    job_frame,
    max_answer_bytes,
    read_result,
    receive,
)
from vauban.errors import GuestFailed
from vauban.policy_sandbox import SandboxPolicy

GRACE_S: Final = 5.0
"""What a program may take beyond its time, for the start of a clone on a busy machine."""
READY_BYTES: Final = 4096


class Guest(ABC):
    """Waits for programs. Not for several threads at once, except `kill`."""

    def __init__(self, tier: str, policy: SandboxPolicy, port: Port) -> None:
        self.tier = tier
        self._policy = policy
        self._port = port

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether it can take another program."""

    @abstractmethod
    def kill(self) -> str:
        """End it, at once and for good; may be called again. What it last complained of."""

    def prepare(self, deadline: float) -> None:
        """Have the guest forget what ran before, and be ready for a program.

        :raises TimeoutError: not by the deadline, on `time.monotonic`'s clock.
        :raises GuestFailed: it does not answer rightly.
        """
        try:
            self._port.settimeout(GRACE_S)
            self._port.sendall(job_frame(None, self._policy))
        except OSError:
            raise GuestFailed("the guest takes nothing") from None
        self._expect_ready(deadline)

    def _expect_ready(self, deadline: float) -> None:
        if receive(self._port, READY_BYTES, deadline) != READY:
            raise GuestFailed("the guest does not greet as it should")

    def run(self, job: Job, started: float | None = None) -> Result:
        """Run a program and wait for it, at most its time and a little.

        The guest is lost when it does not answer rightly; then it is killed, and the result says
        so. :param started: when the caller began, on `time.monotonic`'s clock; default: now.
        """
        begun = time.monotonic() if started is None else started
        deadline = time.monotonic() + self._policy.wall_s + GRACE_S
        try:
            self._port.settimeout(GRACE_S + self._policy.wall_s)
            self._port.sendall(job_frame(job, self._policy))
            fields = receive(self._port, max_answer_bytes(self._policy), deadline)
            return read_result(fields, job, self._policy, self.tier, time.monotonic() - begun)
        except TimeoutError:
            reason = Reason.TIME_LIMIT
        except (GuestFailed, OSError):
            reason = Reason.GUEST_LOST
        self.kill()
        missing = dict.fromkeys(job.results, "Not taken out")
        total_s = time.monotonic() - begun
        return Result(self.tier, reason, 137, missing=missing, total_s=total_s)


@dataclass(frozen=True, slots=True)
class Tier:
    """An isolation that works here.

    `start`: a guest that has run nothing, with these limits; raises GuestFailed. `close`: let go of
    what guests are started from. `passed_over`: why each better one was not taken. `reach`: where
    a guest has a network device that leads nowhere, an address and a TCP port that must be out of
    its reach.
    """

    name: str
    start: Callable[[SandboxPolicy], Guest]
    close: Callable[[], None] = lambda: None
    passed_over: tuple[str, ...] = ()
    reach: tuple[str, int] | None = None
