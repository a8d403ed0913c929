"""Marks and unmarked prompts to decisions, one batch per step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from vauban.detectors.encoder import Encoded
from vauban.detectors.windows import Windows
from vauban.guard import Guard
from vauban.hosts.vllm import screener as module
from vauban.hosts.vllm.channel import Report
from vauban.hosts.vllm.screener import StepScreener
from vauban.mark import Mark, Order, Sealer, new_nonce
from vauban.screening import Screened, ScreenQueue
from vauban.types import Origin, Reason, Segment

FRONT = "front-1-aa.sock"
BAD, GOOD = "a volcano in here", "a plain question"


class Outbox:
    """Stands in for the sender."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Report]] = []

    def send(self, reply: str, reports: Sequence[Report]) -> None:
        self.sent += [(reply, report) for report in reports]


class HandQueue:
    """Encodes when told to; counts the batches."""

    def __init__(self) -> None:
        self.batches: list[list[Windows]] = []
        self.futures: list[Future[Screened]] = []

    def submit(self, batch: Sequence[Windows], callers: object = ()) -> list[Future[Screened]]:
        if batch:
            self.batches.append(list(batch))
        made: list[Future[Screened]] = [Future() for _ in batch]
        self.futures += made
        return made


def decode(ids: Sequence[int]) -> str:
    if any(n < 0 for n in ids):
        raise OverflowError("can't convert negative int to unsigned")
    return "".join(chr(n) for n in ids)


def ids_of(text: str) -> list[int]:
    return [ord(letter) for letter in text]


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


@pytest.fixture
def make(
    make_guard: Callable[..., Guard], fake_encoder: Any, sealer: Sealer, outbox: Outbox
) -> Iterator[Callable[..., StepScreener]]:
    queues: list[ScreenQueue] = []

    def build(queue: Any = None, **injection: Any) -> StepScreener:
        guard = make_guard(injection=injection, encoder={"timeout_ms": 50 if queue else 30_000})
        if queue is None:
            queue = ScreenQueue(fake_encoder.encode, 1_000_000)
            queues.append(queue)
        return StepScreener(guard, queue, sealer, outbox, decode)  # type: ignore[arg-type]

    yield build
    for queue in queues:
        queue.close()


@pytest.fixture
def mark(guard: Guard, sealer: Sealer) -> Callable[..., str]:
    def seal(text: str, order: Order = Order.SCREEN) -> str:
        windows = guard.read([Segment(text, Origin.USER)]).windows
        return sealer.seal_mark(Mark(order, new_nonce(), FRONT, windows))

    return seal


def prompt(text: str) -> Callable[[], list[int]]:
    return lambda: ids_of(text)


def unread() -> list[int]:
    raise AssertionError("the prompt of a marked request is not looked at")


def vetoes(screener: StepScreener, *requests: Any) -> list[bool | None]:
    decisions = screener.launch(requests)
    screener.settle(decisions)
    return [decision.veto for decision in decisions]


def test_marked_requests_of_a_step_are_one_batch(
    make: Any, mark: Any, fake_encoder: Any, outbox: Outbox
) -> None:
    requests = [(mark(BAD if n % 2 else GOOD), unread) for n in range(6)]
    assert vetoes(make(), *requests) == [bool(n % 2) for n in range(6)]
    assert fake_encoder.batches == [6]
    assert {reply for reply, _ in outbox.sent} == {FRONT}
    assert [report.score > 0.5 for _, report in outbox.sent] == [bool(n % 2) for n in range(6)]
    assert {report.batch for _, report in outbox.sent} == {6}


def test_children_and_resumed_requests_share_a_decision(
    make: Any, mark: Any, fake_encoder: Any, outbox: Outbox
) -> None:
    screener, sealed = make(), mark(BAD)
    first, second = screener.launch([(sealed, unread), (sealed, unread)])
    assert first is second
    screener.settle([first, second])
    (resumed,) = screener.launch([(sealed, unread)])
    assert resumed is first
    assert resumed.veto is True
    assert fake_encoder.batches == [1]
    assert len(outbox.sent) == 1


def test_what_is_remembered_is_bounded(
    make: Any, mark: Any, monkeypatch: pytest.MonkeyPatch, fake_encoder: Any
) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED_MARKS", 2)
    screener, marks = make(), [mark(GOOD) for _ in range(3)]
    for sealed in [*marks, marks[2], marks[0]]:
        vetoes(screener, (sealed, unread))
    assert len(fake_encoder.batches) == 4  # the oldest was forgotten and encoded again
    assert len(screener._remembered) == 2


def test_a_pass_mark_is_not_screened(make: Any, mark: Any, fake_encoder: Any) -> None:
    assert vetoes(make(), (mark(BAD, Order.PASS), unread)) == [False]
    assert fake_encoder.batches == []


@pytest.mark.parametrize("forged", ["AAAA", "", "x" * 400, 5, ["x"], {"a": 1}, True])
def test_a_forged_mark_is_no_mark(
    make: Any, forged: Any, caplog: pytest.LogCaptureFixture, outbox: Outbox
) -> None:
    with caplog.at_level(logging.WARNING):
        requests = [(forged, prompt(BAD)), (forged, prompt(GOOD))]
        assert vetoes(make(), *requests) == [True, False]
    assert "forged mark" in caplog.text
    assert outbox.sent == []


def test_another_servers_mark_is_no_mark(make: Any, guard: Guard) -> None:
    other = Sealer(b"z" * 32)
    passing = other.seal_mark(Mark(Order.PASS, new_nonce(), "", Windows(())))
    assert vetoes(make(), (passing, prompt(BAD))) == [True]


@pytest.mark.parametrize(
    ("rule", "found"), [("screen", [True, False]), ("veto", [True, True]), ("allow", [False] * 2)]
)
def test_the_rules_for_unmarked_requests(make: Any, rule: str, found: list[bool]) -> None:
    screener = make(unmarked=rule)
    assert vetoes(screener, (None, prompt(BAD)), (None, prompt(GOOD))) == found


@pytest.mark.parametrize("rule", ["screen", "veto", "allow"])
def test_off_lets_unmarked_requests_pass(make: Any, rule: str) -> None:
    assert vetoes(make(unmarked=rule, mode="off"), (None, prompt(BAD))) == [False]


@pytest.mark.parametrize("ids", [None, [-1, 5], [2**40]])
def test_a_prompt_that_can_not_be_read_is_vetoed(make: Any, ids: Any) -> None:
    assert vetoes(make(), (None, lambda: ids)) == [True]
    assert vetoes(make(on_failure="allow"), (None, lambda: ids)) == [False]


def test_an_unmarked_prompt_over_the_limits_is_vetoed(make: Any) -> None:
    assert vetoes(make(), (None, prompt("x" * 1_000_001))) == [True]


def test_an_encoder_that_fails_vetoes_and_says_so(
    make: Any, mark: Any, fake_encoder: Any, outbox: Outbox
) -> None:
    fake_encoder.fail = RuntimeError("CUDA error")
    assert vetoes(make(), (mark(GOOD), unread), (None, prompt(GOOD))) == [True, True]
    ((_, report),) = outbox.sent
    assert (report.score, report.failure) == (None, Reason.SCREEN_FAILED)
    assert vetoes(make(on_failure="allow"), (mark(GOOD), unread)) == [False]


def test_an_encoder_that_hangs_vetoes(make: Any, mark: Any) -> None:
    assert vetoes(make(HandQueue()), (mark(GOOD), unread)) == [True]
    assert vetoes(make(HandQueue(), on_failure="allow"), (mark(GOOD), unread)) == [False]


def test_the_front_hears_of_a_timeout_before_the_late_score(
    make: Any, mark: Any, outbox: Outbox
) -> None:
    queue = HandQueue()
    screener = make(queue)
    decisions = screener.launch([(mark(GOOD), unread)])
    queue.futures[0].set_running_or_notify_cancel()
    screener.settle(decisions)
    ((_, report),) = outbox.sent
    assert report.failure is Reason.SCREEN_TIMEOUT
    queue.futures[0].set_result(Screened(Encoded(0.0, None, 1)))
    assert decisions[0].veto is True
    assert {late.nonce for _, late in outbox.sent} == {report.nonce}


def test_a_nan_vetoes(make: Any, mark: Any) -> None:
    queue = HandQueue()
    screener = make(queue)
    decisions = screener.launch([(mark(GOOD), unread)])
    queue.futures[0].set_result(Screened(Encoded(math.nan, None, 1)))
    screener.settle(decisions)
    assert decisions[0].veto is True


def test_launching_waits_for_nothing(make: Any, mark: Any) -> None:
    queue = HandQueue()
    (decision,) = make(queue).launch([(mark(GOOD), unread)])
    assert decision.veto is None
    assert len(queue.batches) == 1


def test_monitor_vetoes_nothing_and_reports(make: Any, mark: Any, outbox: Outbox) -> None:
    assert vetoes(make(mode="monitor"), (mark(BAD), unread), (None, prompt(BAD))) == [False] * 2
    assert outbox.sent[0][1].score > 0.9
