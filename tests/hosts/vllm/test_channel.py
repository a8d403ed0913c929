"""Verdicts on their way back: to the right request, or to nobody."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import fields, replace
from pathlib import Path

import pytest

from vauban.errors import ConfigError
from vauban.hosts.vllm.channel import (
    Report,
    ReportReceiver,
    ReportSender,
    announce_engine,
    announced_engines,
)
from vauban.mark import Sealer, new_nonce
from vauban.types import Evidence, Level, Reason

WAIT_S = 10


def report(nonce: bytes, score: float | None = 0.5, failure: Reason | None = None) -> Report:
    return Report(nonce, score, failure, 3, 1.5, 2.5)


@pytest.fixture
async def receiver(sealer: Sealer, runtime_dir: Path) -> AsyncIterator[ReportReceiver]:
    made = ReportReceiver(sealer, runtime_dir)
    made.open()
    yield made
    made.close()


@pytest.fixture
def sender(sealer: Sealer, runtime_dir: Path) -> ReportSender:
    return ReportSender(sealer, runtime_dir)


async def test_each_report_reaches_its_own_future(
    receiver: ReportReceiver, sender: ReportSender
) -> None:
    nonces = [new_nonce() for _ in range(200)]
    futures = [receiver.expect(nonce) for nonce in nonces]
    sender.send(receiver.name, [report(n, i / 200) for i, n in enumerate(nonces)])
    found = await asyncio.wait_for(asyncio.gather(*futures), WAIT_S)
    assert found == [report(n, i / 200) for i, n in enumerate(nonces)]


@pytest.mark.parametrize("failure", [Reason.SCREEN_FAILED, Reason.SCREEN_OVERLOADED])
async def test_failures_arrive(
    receiver: ReportReceiver, sender: ReportSender, failure: Reason
) -> None:
    nonce = new_nonce()
    future = receiver.expect(nonce)
    sender.send(receiver.name, [report(nonce, None, failure)])
    assert (await asyncio.wait_for(future, WAIT_S)).failure is failure


async def test_all_that_is_known_of_a_caller_arrives(
    receiver: ReportReceiver, sender: ReportSender
) -> None:
    nonce = new_nonce()
    future = receiver.expect(nonce)
    known = Evidence(
        0.5, Level.SLOWED, 96, (("campaign", 0.75), ("drift", 1.0)), "campaign-1", 3.0, (0.1, -0.2),
        "service",
    )  # fmt: skip
    assert not [f.name for f in fields(Evidence) if getattr(known, f.name) == f.default]
    sender.send(receiver.name, [replace(report(nonce), evidence=known)])
    found = (await asyncio.wait_for(future, WAIT_S)).evidence
    assert isinstance(found, Evidence)
    assert (found, found.at) == (known, known.at)


async def test_a_front_that_is_busy_loses_no_verdict(
    receiver: ReportReceiver, sender: ReportSender
) -> None:
    """A socket takes ten datagrams; more than that wait at once when a batch is done."""
    nonces = [new_nonce() for _ in range(100)]
    futures = [receiver.expect(nonce) for nonce in nonces]
    for nonce in nonces:
        sender.send(receiver.name, [report(nonce)])  # the loop doesn't run while this does
    assert len(await asyncio.wait_for(asyncio.gather(*futures), WAIT_S)) == 100


async def test_unexpected_and_repeated_reports_are_ignored(
    receiver: ReportReceiver, sender: ReportSender
) -> None:
    known, forgotten = new_nonce(), new_nonce()
    first, second = receiver.expect(known), receiver.expect(forgotten)
    receiver.forget(forgotten)
    sender.send(receiver.name, [report(new_nonce()), report(forgotten)])
    sender.send(receiver.name, [report(known, 0.25), report(known, 0.75)])
    assert (await asyncio.wait_for(first, WAIT_S)).score == 0.25
    assert not second.done()


async def test_a_cancelled_request_is_no_error(
    receiver: ReportReceiver, sender: ReportSender
) -> None:
    gone, there = new_nonce(), new_nonce()
    receiver.expect(gone).cancel()
    future = receiver.expect(there)
    sender.send(receiver.name, [report(gone), report(there)])
    await asyncio.wait_for(future, WAIT_S)


async def test_a_wrong_seal_is_dropped(
    receiver: ReportReceiver,
    sender: ReportSender,
    runtime_dir: Path,
    sealer: Sealer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    nonce = new_nonce()
    future = receiver.expect(nonce)
    row = json.dumps([[nonce.hex(), 0.0, None, 1, 0.0, 0.0]]).encode()
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with caplog.at_level(logging.WARNING):
        for forged in (row, row + b"x" * 32, b"", Sealer(b"z" * 32).seal(b"verdict", row),
                       sealer.seal(b"mark", row)):  # fmt: skip
            plain.sendto(forged, str(runtime_dir / receiver.name))
        sender.send(receiver.name, [report(nonce, 0.875)])
        assert (await asyncio.wait_for(future, WAIT_S)).score == 0.875
    plain.close()
    assert caplog.text.count("wrong seal") == 5


@pytest.mark.parametrize("reply", ["../outside.sock", "/var/outside.sock", "a/b", "./x"])
async def test_a_reply_that_is_a_path_is_refused(
    sender: ReportSender, receiver: ReportReceiver, runtime_dir: Path, reply: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    nonce = new_nonce()
    future = receiver.expect(nonce)
    sender.send(reply, [report(new_nonce())])
    sender.send(receiver.name, [report(nonce)])
    await asyncio.wait_for(future, WAIT_S)
    assert "could not be delivered" not in caplog.text  # nothing was tried


async def test_a_sender_survives_fronts_that_are_gone(
    sender: ReportSender, receiver: ReportReceiver, sealer: Sealer, runtime_dir: Path
) -> None:
    gone = ReportReceiver(sealer, runtime_dir)
    gone.open()
    gone.close()
    nonce = new_nonce()
    future = receiver.expect(nonce)
    for reply in (gone.name, "never-was.sock", "", "..", "x" * 500):
        sender.send(reply, [report(nonce)])
    sender.send(receiver.name, [report(nonce)])
    await asyncio.wait_for(future, WAIT_S)


async def test_the_socket_is_private_and_goes_away(sealer: Sealer, runtime_dir: Path) -> None:
    receiver = ReportReceiver(sealer, runtime_dir)
    receiver.open()
    path = runtime_dir / receiver.name
    assert path.stat().st_mode & 0o077 == 0
    receiver.close()
    assert not path.exists()
    receiver.close()


async def test_a_directory_that_takes_no_socket_stops_the_start(
    sealer: Sealer, runtime_dir: Path
) -> None:
    for directory in (runtime_dir / "missing", runtime_dir / ("x" * 120)):
        receiver = ReportReceiver(sealer, directory)
        with pytest.raises(ConfigError):
            receiver.open()


def test_engines_announce_themselves(runtime_dir: Path) -> None:
    assert announced_engines(runtime_dir) == []
    announce_engine(runtime_dir, "abc")
    assert announced_engines(runtime_dir) == ["abc"]
    announce_engine(runtime_dir, "def")
    assert announced_engines(runtime_dir) == ["def"]


def test_an_engine_that_died_is_not_counted(runtime_dir: Path) -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    (runtime_dir / f"engine-{child}.json").write_text('{"policy": "abc"}')
    (runtime_dir / f"engine-{os.getpid()}.json").write_text("{")
    assert announced_engines(runtime_dir) == []
