"""The queue in front of the encoder: batching, bounds, and no request without an answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from vauban.detectors.encoder import Encoded
from vauban.detectors.windows import Windows
from vauban.screening import ScreenQueue
from vauban.types import Reason

WAIT_S = 30


def windows(tokens: int = 4, first: int = 101) -> Windows:
    return Windows(((np.full(tokens, first, np.int32),),))


class SlowEncoder:
    """Waits at the door until `release` is set; says when it has begun."""

    def __init__(self, encode: Callable[..., list[Encoded]]) -> None:
        self._encode = encode
        self.begun = threading.Event()
        self.release = threading.Event()
        self.sizes: list[int] = []

    def __call__(self, batch: Sequence[Windows]) -> list[Encoded]:
        self.sizes.append(len(batch))
        self.begun.set()
        assert self.release.wait(WAIT_S)
        return self._encode(batch)


@pytest.fixture
def slow(fake_encoder) -> Iterator[SlowEncoder]:
    encoder = SlowEncoder(fake_encoder.encode)
    yield encoder
    encoder.release.set()


def test_what_waits_together_is_encoded_together(slow: SlowEncoder) -> None:
    queue = ScreenQueue(slow, 1000)
    (first,) = queue.submit([windows()])
    assert slow.begun.wait(WAIT_S)
    rest = [queue.submit([windows(first=n)])[0] for n in range(1, 8)]
    rest += queue.submit([windows(), windows()])
    slow.release.set()
    assert first.result(WAIT_S).batch == 1
    assert {future.result(WAIT_S).batch for future in rest} == {9}
    assert slow.sizes == [1, 9]
    queue.close()


def test_outcomes_go_to_their_own_requests(fake_encoder) -> None:
    queue = ScreenQueue(fake_encoder.encode, 10_000)
    futures = queue.submit([windows(first=12_779 if n % 3 == 0 else n) for n in range(1, 20)])
    for n, future in enumerate(futures, start=1):
        outcome = future.result(WAIT_S).outcome
        assert isinstance(outcome, Encoded)
        assert (outcome.score > 0.9) == (n % 3 == 0)
    queue.close()


def test_over_the_bound_is_answered_at_once(slow: SlowEncoder) -> None:
    queue = ScreenQueue(slow, max_tokens=10)
    queue.submit([windows()])
    assert slow.begun.wait(WAIT_S)
    accepted = queue.submit([windows(6)])[0]
    refused = queue.submit([windows(5)])[0]
    assert refused.done()
    assert refused.result().outcome is Reason.SCREEN_OVERLOADED
    fits = queue.submit([windows(4)])[0]
    slow.release.set()
    assert isinstance(accepted.result(WAIT_S).outcome, Encoded)
    assert isinstance(fits.result(WAIT_S).outcome, Encoded)
    again = queue.submit([windows(6)])[0]  # the bound counts what waits, not what ever waited
    assert isinstance(again.result(WAIT_S).outcome, Encoded)
    queue.close()


def test_one_request_over_the_bound_is_taken_when_nothing_waits(fake_encoder) -> None:
    queue = ScreenQueue(fake_encoder.encode, max_tokens=1)
    (future,) = queue.submit([windows(50)])
    assert isinstance(future.result(WAIT_S).outcome, Encoded)
    queue.close()


def test_a_client_that_left_is_not_encoded(slow: SlowEncoder) -> None:
    queue = ScreenQueue(slow, 1000)
    queue.submit([windows()])
    assert slow.begun.wait(WAIT_S)
    gone, stays = queue.submit([windows(), windows()])
    assert gone.cancel()
    slow.release.set()
    assert stays.result(WAIT_S).batch == 1
    assert slow.sizes == [1, 1]
    queue.close()


def test_when_all_have_left_nothing_is_encoded(slow: SlowEncoder) -> None:
    queue = ScreenQueue(slow, 1000)
    (first,) = queue.submit([windows()])
    assert slow.begun.wait(WAIT_S)
    for future in queue.submit([windows(), windows()]):
        assert future.cancel()
    slow.release.set()
    first.result(WAIT_S)
    (after,) = queue.submit([windows()])
    after.result(WAIT_S)
    assert slow.sizes == [1, 1]
    queue.close()


def test_an_encoder_that_raises_is_an_outcome_and_the_queue_lives_on(fake_encoder) -> None:
    queue = ScreenQueue(fake_encoder.encode, 1000)
    fake_encoder.fail = RuntimeError("CUDA error")
    (failed,) = queue.submit([windows()])
    assert failed.result(WAIT_S).outcome is Reason.SCREEN_FAILED
    fake_encoder.fail = None
    (good,) = queue.submit([windows()])
    assert isinstance(good.result(WAIT_S).outcome, Encoded)
    queue.close()


def test_close_answers_what_waits_and_takes_no_more(slow: SlowEncoder) -> None:
    queue = ScreenQueue(slow, 1000)
    queue.submit([windows()])
    assert slow.begun.wait(WAIT_S)
    (waiting,) = queue.submit([windows()])
    queue.close()
    (late,) = queue.submit([windows()])
    assert late.result(WAIT_S).outcome is Reason.SCREEN_OVERLOADED
    slow.release.set()
    assert isinstance(waiting.result(WAIT_S).outcome, Encoded)


def test_times_are_told(fake_encoder) -> None:
    queue = ScreenQueue(fake_encoder.encode, 1000)
    (future,) = queue.submit([windows()])
    screened = future.result(WAIT_S)
    assert screened.queue_ms >= 0
    assert screened.encode_ms >= 0
    queue.close()
