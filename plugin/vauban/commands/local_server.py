"""A guarded vLLM server as a child process: started, waited for, and stopped with all it started.

The server gets a session of its own, so Ctrl-C reaches only the parent, which then ends the
server's whole process group (API server, engine core, workers).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vauban.commands.serve import LOOPBACK
from vauban.errors import ConfigError, VaubanError

START_TIMEOUT_S = 600
STOP_TIMEOUT_S = 20
_POLL_S = 0.25
_TAIL_LINES = 25
_TAIL_BYTES = 16_384


class ServerFailed(VaubanError):
    """The server did not start, or ended by itself; the message has the end of its log."""


def free_port(wanted: int | None) -> int:
    """The port asked for, or any free one on loopback.

    :raises ConfigError: the port is taken or may not be used.
    """
    with socket.socket() as probe:
        # As the server will: a port whose last connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted or 0))
            return int(probe.getsockname()[1])
        except OSError as error:
            raise ConfigError(f"port {wanted} can't be used: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A server on loopback that may be running. `log`: everything it and its children print."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def wait_ready(self, answers: Callable[[str], bool]) -> None:
        """Wait until the server is ready.

        :param answers: whether a GET of this address succeeds.
        :raises ServerFailed: it ended before it was ready, or took longer than `START_TIMEOUT_S`.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(f"{self.url}/health"):
            if (code := self.process.poll()) is not None:
                raise ServerFailed(f"the server ended with status {code}.\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"no answer within {START_TIMEOUT_S} s.\n{self.tail()}")
            time.sleep(_POLL_S)

    def wait_ended(self) -> None:
        """Wait for the server to end by itself, which a server should not.

        :raises ServerFailed: it did.
        """
        code = self.process.wait()
        raise ServerFailed(f"the server ended with status {code}.\n{self.tail()}")

    def tail(self) -> str:
        """The last lines of the log, and its name."""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
        return "\n".join([*lines[-_TAIL_LINES:], f"The whole log: {self.log}"])

    def stop(self) -> None:
        """End the server and everything it started; idempotent.

        It is asked first. What is left after `STOP_TIMEOUT_S`, or at a second Ctrl-C, is killed.
        """
        try:
            self.process.terminate()  # vLLM then ends its engine processes itself
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while self._runs() and time.monotonic() < deadline:
                time.sleep(_POLL_S / 5)
        finally:
            if self._runs():
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _runs(self) -> bool:
        """Whether any process of the group is left."""
        self.process.poll()  # takes the exit status, else a zombie stays in the group
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


@contextmanager
def running(
    command: Sequence[str], environ: Mapping[str, str], port: int, log: Path
) -> Iterator[LocalServer]:
    """The server, started; it is stopped on the way out, however that is taken."""
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = LocalServer(process, port, log)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def terminable() -> Iterator[None]:
    """Let a polite kill and a closed terminal stop what was started as Ctrl-C does."""
    before = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
