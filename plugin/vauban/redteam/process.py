"""A tool as a subprocess: progress while it runs, and an end however it behaves."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from vauban.errors import ToolFailed
from vauban.redteam.relay import Books

_POLL_S = 0.2
_POLITE_S = 5.0
_TAIL_CHARS = 400

Outcome = Literal["complete", "target_dead", "rate_limited", "time_limit", "tool_failed"]
OF_HOPELESS: Mapping[str, Outcome] = {
    "dead_target": "target_dead",
    "timeout": "target_dead",
    "server_error": "target_dead",
    "rate_limited": "rate_limited",
}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a tool's process ended, in the words of `ToolRun`."""

    outcome: Outcome
    detail: str
    seconds: float

    def failed(self, detail: str) -> Ended:
        return replace(self, outcome="tool_failed", detail=detail)


def run_tool(
    name: str,
    command: Sequence[str],
    environ: Mapping[str, str],
    books: Books,
    limit_s: float,
    log: Path,
    console: Console,
) -> Ended:
    """Run it until it ends, the target is past hope, or the time is up.

    :raises ToolFailed: it can't be started.
    """
    started = time.monotonic()
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(  # noqa: S603 - the tool's own interpreter, no shell
                command, env=dict(environ), cwd=log.parent, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise ToolFailed(f"{name} can't be started: {error.strerror}") from None
    try:
        with console.status("") as status:
            while process.poll() is None:
                seconds = time.monotonic() - started
                status.update(f"{name}: {books.total()} requests, {seconds:.0f} of {limit_s:.0f} s")
                if books.hopeless is not None:
                    return _gave_up(books, seconds)
                if seconds > limit_s:
                    return Ended("time_limit", f"stopped after {limit_s:.0f} s", seconds)
                time.sleep(_POLL_S)
    finally:
        _end(process)
    seconds = time.monotonic() - started
    if books.hopeless is not None:
        return _gave_up(books, seconds)
    if process.returncode:
        said = log.read_bytes()[-_TAIL_CHARS:].decode("utf-8", "replace")
        plain = "".join(c if c.isprintable() else " " for c in said)
        return Ended("tool_failed", f"{name} ended with {process.returncode}: {plain}", seconds)
    return Ended("complete", "", seconds)


def _gave_up(books: Books, seconds: float) -> Ended:
    kind = books.hopeless or ""
    return Ended(OF_HOPELESS[kind], f"no answer any more: {kind}", seconds)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and all that it started."""
    for number, patience_s in ((signal.SIGTERM, _POLITE_S), (signal.SIGKILL, _POLITE_S)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
