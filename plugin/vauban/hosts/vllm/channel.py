"""The way back: the engine tells each front what the encoder said of its requests.

Unix datagram sockets in the runtime directory (mode 0700), one per API server process; messages
are sealed. A front releases an answer only after the verdict has arrived, so a lost message means
a blocked request, never an unguarded one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import queue
import secrets
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vauban.errors import ConfigError
from vauban.mark import Sealer
from vauban.types import Evidence, Level, Reason

logger = logging.getLogger(__name__)

_PURPOSE = b"verdict"
_MAX_DATAGRAM_BYTES = 65_536
_PER_DATAGRAM = 32
_SEND_TIMEOUT_S = 5.0
_ENGINE_FILE = "engine-{pid}.json"


@dataclass(frozen=True, slots=True)
class Report:
    """What the engine found for one mark. Exactly one of `score` and `failure` is set.

    `evidence`: what is known of the caller now, or why that can't be said; None where nobody
    watches.

    `batch`: requests in the same forward pass. Times in milliseconds.
    """

    nonce: bytes
    score: float | None
    failure: Reason | None
    batch: int
    queue_ms: float
    encode_ms: float
    evidence: Evidence | Reason | None = None


class ReportSender:
    """The engine's end. Thread-safe; never raises or waits for a front that is busy or gone.

    It sends on its own thread: a socket takes few datagrams (ten, by Linux's default) before its
    reader has to catch up, and a batch of the encoder answers many requests at once.
    """

    def __init__(self, sealer: Sealer, directory: Path) -> None:
        self._sealer = sealer
        self._directory = directory
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(_SEND_TIMEOUT_S)
        self._waiting: queue.SimpleQueue[tuple[str, Report]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="vauban-reports", daemon=True).start()

    def send(self, reply: str, reports: Iterable[Report]) -> None:
        """Send to the front named `reply`. A front that can't be reached fails closed itself."""
        if Path(reply).name != reply:
            return
        for report in reports:
            self._waiting.put((reply, report))

    def _run(self) -> None:
        while True:
            by_front: dict[str, list[Report]] = {}
            reply, report = self._waiting.get()
            by_front[reply] = [report]
            with contextlib.suppress(queue.Empty):
                while True:
                    reply, report = self._waiting.get_nowait()
                    by_front.setdefault(reply, []).append(report)
            for reply, reports in by_front.items():
                self._deliver(reply, reports)

    def _deliver(self, reply: str, reports: list[Report]) -> None:
        rows = [
            [
                r.nonce.hex(),
                r.score,
                r.failure,
                r.batch,
                round(r.queue_ms, 3),
                round(r.encode_ms, 3),
                _evidence_row(r.evidence),
            ]
            for r in reports
        ]
        for start in range(0, len(rows), _PER_DATAGRAM):
            data = json.dumps(rows[start : start + _PER_DATAGRAM]).encode()
            try:
                self._socket.sendto(self._sealer.seal(_PURPOSE, data), str(self._directory / reply))
            except OSError as error:
                reason = error.strerror or type(error).__name__
                logger.warning("a verdict could not be delivered: %s", reason)


class ReportReceiver:
    """The front's end: one future per nonce, resolved when the report arrives."""

    def __init__(self, sealer: Sealer, directory: Path) -> None:
        self._sealer = sealer
        self.name = f"front-{os.getpid()}-{secrets.token_hex(4)}.sock"
        self._path = directory / self.name
        self._expected: dict[bytes, asyncio.Future[Report]] = {}
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Bind and listen on the running event loop.

        :raises ConfigError: the runtime directory is gone or its path is too long for a socket.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind(str(self._path))
        except OSError as error:
            raise ConfigError(
                f"no socket can be made at {self._path} ({error}); set TMPDIR to a short path"
            ) from None
        self._path.chmod(0o600)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)

    def close(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._path.unlink(missing_ok=True)

    def expect(self, nonce: bytes) -> asyncio.Future[Report]:
        future: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._expected[nonce] = future
        return future

    def forget(self, nonce: bytes) -> None:
        self._expected.pop(nonce, None)

    def _read(self) -> None:
        while self._socket is not None:
            try:
                sealed = self._socket.recv(_MAX_DATAGRAM_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            data = self._sealer.open(_PURPOSE, sealed)
            if data is None:
                logger.warning("a verdict with a wrong seal was dropped")
                continue
            for row in json.loads(data):
                self._resolve(row)

    def _resolve(self, row: list[object]) -> None:
        nonce, score, failure, batch, queue_ms, encode_ms, evidence = row
        future = self._expected.pop(bytes.fromhex(str(nonce)), None)
        if future is not None and not future.done():
            future.set_result(
                Report(
                    nonce=bytes.fromhex(str(nonce)),
                    score=float(score) if isinstance(score, (int, float)) else None,
                    failure=Reason(str(failure)) if failure is not None else None,
                    batch=int(str(batch)),
                    queue_ms=float(str(queue_ms)),
                    encode_ms=float(str(encode_ms)),
                    evidence=_evidence_of(evidence),
                )
            )


def _evidence_row(evidence: Evidence | Reason | None) -> object:
    if not isinstance(evidence, Evidence):
        return evidence
    return [
        evidence.score, evidence.level, evidence.queries, evidence.signals, evidence.campaign,
        evidence.began_at, evidence.at, evidence.proposed,
    ]  # fmt: skip


def _evidence_of(row: object) -> Evidence | Reason | None:
    if not isinstance(row, list):
        return None if row is None else Reason(str(row))
    score, level, queries, signals, campaign, began_at, at, proposed = row
    found = tuple((str(name), float(value)) for name, value in signals)
    return Evidence(
        float(score), Level(level), int(queries), found, str(campaign), float(began_at),
        (float(at[0]), float(at[1])) if at is not None else None, str(proposed),
    )  # fmt: skip


def announce_engine(directory: Path, policy_digest: str) -> None:
    """Called by an engine that screens: tells the fronts so, before the server opens its port."""
    path = directory / _ENGINE_FILE.format(pid=os.getpid())
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps({"policy": policy_digest}))
    scratch.replace(path)


def announced_engines(directory: Path) -> list[str]:
    """Policy digests of the engines that announced themselves and still live."""
    digests = []
    for path in directory.glob(_ENGINE_FILE.format(pid="*")):
        pid = int(path.stem.partition("-")[2])
        with contextlib.suppress(ProcessLookupError, OSError, ValueError, KeyError):
            os.kill(pid, 0)
            digests.append(str(json.loads(path.read_text())["policy"]))
    return digests
