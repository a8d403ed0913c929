"""The sandbox: give it a program, get what it printed. Nothing runs outside the isolation that was
chosen at the start."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from vauban.agents import cgroup
from vauban.agents.canary import check
from vauban.agents.frames import Job, Result
from vauban.agents.guests import Guest, Tier
from vauban.agents.template import WARM_UP, cache_directory
from vauban.agents.tiers import choose
from vauban.errors import GuestFailed, NoIsolation, SandboxBusy
from vauban.policy_sandbox import SandboxPolicy

logger = logging.getLogger(__name__)

RETRY_S: Final = 1.0


class Pool:
    """Clones that have run one program already, so that their emulator has translated what every
    program needs. A thread keeps it full."""

    def __init__(self, size: int, make: Callable[[], Guest]) -> None:
        self._size = size
        self._make = make
        self._ready: deque[Guest] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._fill, name="vauban-pool", daemon=True)
        if size:
            self._thread.start()

    def take(self) -> Guest | None:
        """One that is ready, or None."""
        with self._change:
            while self._ready:
                vm = self._ready.popleft()
                self._change.notify_all()
                if vm.alive:
                    return vm
                vm.kill()
        return None

    def wait_full(self, timeout_s: float) -> bool:
        with self._change:
            return self._change.wait_for(lambda: len(self._ready) >= self._size, timeout_s)

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._size:
            self._thread.join()
        while self._ready:
            self._ready.popleft().kill()

    def _fill(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or len(self._ready) < self._size)
                if self._closed:
                    return
            try:
                vm = self._make()
            except (GuestFailed, NoIsolation) as error:
                logger.error("no virtual machine can be kept ready: %s", error)
                time.sleep(RETRY_S)
                continue
            with self._change:
                self._ready.append(vm)
                self._change.notify_all()


class Sandbox:
    """Runs programs, each in a clone of one snapshot. Threads may share it.

    :param canary: check first that nothing of the host can be reached; see `canary.py`.
    :raises ImageError: there is no image, or it was changed.
    :raises NoIsolation: the machine can't isolate, or the check found a way out.
    """

    def __init__(
        self, policy: SandboxPolicy, cache: Path | None = None, *, canary: bool = True
    ) -> None:
        self.policy = policy
        cgroup.sweep()
        self.tier: Tier = choose(policy, cache or cache_directory())
        self._slots = threading.Semaphore(policy.max_running)
        self._waiting = threading.Semaphore(policy.max_running + policy.max_waiting)
        self._sessions: dict[str, Guest] = {}
        self._lock = threading.Lock()
        with ExitStack() as held:
            held.callback(self.tier.close)
            if canary:
                check(self)
            held.pop_all()
        self.pool = Pool(policy.pool, self._warm)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def clone(self, policy: SandboxPolicy | None = None) -> Guest:
        """A clone that has run nothing.

        :param policy: the limits of what it will run; default: those of the sandbox.
        :raises GuestFailed: it can't be started.
        """
        limits = policy or self.policy
        try:
            return self.tier.start(limits)
        except OSError as error:  # such as: no more descriptors
            raise GuestFailed(f"no machine can be started: {error.strerror}") from None

    def run(self, job: Job, session: str = "") -> Result:
        """Run a program to its end, or to that of its time.

        :param session: where the policy says so, programs of one session share a machine.
        :raises BadJob: the program or its files are over a limit.
        :raises SandboxBusy: too many programs wait already.
        :raises GuestFailed: no machine can be started.
        """
        job.check(self.policy)
        started = time.monotonic()
        if not self._waiting.acquire(blocking=False):
            raise SandboxBusy("too many programs wait already; try again later")
        try:
            with self._slots:
                return self._run(job, session, started)
        finally:
            self._waiting.release()

    def end_session(self, session: str) -> None:
        """Kill a session's machine, if it has one."""
        with self._lock:
            vm = self._sessions.pop(session, None)
        if vm is not None:
            vm.kill()

    def close(self) -> None:
        self.pool.close()
        for session in list(self._sessions):
            self.end_session(session)
        self.tier.close()

    def _run(self, job: Job, session: str, started: float) -> Result:
        shared = bool(session) and self.policy.per == "session"
        with self._lock:
            vm = self._sessions.pop(session, None) if shared else None
        if vm is None or not vm.alive:
            vm = self.pool.take() or self.clone()
        kept = False
        try:
            result = vm.run(job, started)
            kept = shared and vm.alive and self._keep(session, vm)
            return result
        finally:
            if not kept:
                vm.kill()

    def _keep(self, session: str, vm: Guest) -> bool:
        """Keep a machine for the session's next program. A client that hangs up never ends its
        session, so the one that is unused longest makes room."""
        with self._lock:
            if session in self._sessions:
                return False
            self._sessions[session] = vm
            full = len(self._sessions) > self.policy.max_running
            oldest = self._sessions.pop(next(iter(self._sessions))) if full else None
        if oldest is not None:
            oldest.kill()
        return True

    def _warm(self) -> Guest:
        vm = self.clone()
        try:
            vm.run(WARM_UP)
            vm.prepare(time.monotonic() + self.policy.wall_s)
        except (TimeoutError, GuestFailed) as error:
            vm.kill()
            raise GuestFailed(f"a clone does not come up: {error}") from None
        return vm
