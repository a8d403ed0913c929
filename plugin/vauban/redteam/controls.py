"""Send the harmless requests and see what comes back, from a baseline beside the target, too."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from vauban.redteam.benign import Harmless, Suite
from vauban.redteam.outcome import Outcome, classify
from vauban.redteam.relay import MAX_ANSWER_BYTES
from vauban.redteam.result import MAX_LATENCY_SAMPLES, BenignResult

_MAX_TOKENS = 48
_HOPELESS_AFTER = 8


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`base`: without `/v1`. `client` holds the key; no answer may take over `request_s`."""

    client: httpx.Client
    base: str
    model: str
    request_s: float = 60.0


def ask_within(
    client: httpx.Client, method: str, url: str, limit_s: float, body: Any = None
) -> httpx.Response:
    """A whole answer of bounded time and size; httpx alone bounds only the time between pieces.

    :raises httpx.HTTPError: no such answer; `httpx.TimeoutException` where it took too long.
    """
    deadline = time.monotonic() + limit_s
    with client.stream(method, url, json=body, timeout=limit_s) as answer:
        data = bytearray()
        for piece in answer.iter_bytes():
            data += piece
            if len(data) > MAX_ANSWER_BYTES:
                raise httpx.DecodingError(f"over {MAX_ANSWER_BYTES} bytes")
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout(f"not complete within {limit_s:.0f} s")
        headers = {k: v for k, v in answer.headers.items() if k.startswith("x-")}
        return httpx.Response(answer.status_code, headers=headers, content=bytes(data))


@dataclass
class Controls:
    """What came of the suites. `hopeless`: the kind of error that ended them early.

    `added_ms` is what the server says that its guard added, for each request.
    """

    suites: list[BenignResult] = field(default_factory=list)
    added_ms: list[float] = field(default_factory=list)
    hopeless: str | None = None
    policy_digest: str = "unknown"


@dataclass
class _Tally:
    blocked: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    correct: int = 0
    unanswered: int = 0


class _Side:
    """One endpoint, and what it has answered so far."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.controls = Controls()
        self._endpoint = endpoint
        self._tally = _Tally()
        self._in_a_row = 0

    def send(self, row: Harmless) -> float | None:
        """Milliseconds until the answer, None where there was none."""
        if self.controls.hopeless is not None:
            self._tally.errors[self.controls.hopeless] += 1
            return None
        began = time.perf_counter()
        outcome, text = _ask(self._endpoint, row.text, self.controls)
        took_ms = (time.perf_counter() - began) * 1e3
        _add(self._tally, outcome, text, row)
        self._in_a_row = self._in_a_row + 1 if outcome.unavailable else 0
        if self._in_a_row >= _HOPELESS_AFTER:
            self.controls.hopeless = outcome.detail
        return took_ms if outcome.kind == "answered" else None

    def close(self, suite: Suite) -> None:
        """Write down the suite that ends here."""
        self.controls.suites.append(_row(suite, self._tally))
        self._tally = _Tally()


@dataclass
class Compared:
    """`added_ms`: the target's time less the baseline's, for each request that both answered."""

    target: Controls
    baseline: Controls | None
    added_ms: list[float]


def send_controls(
    target: Endpoint, suites: Sequence[Suite], baseline: Endpoint | None = None
) -> Compared:
    """Send every suite, one request after the other, until the target is past hope.

    With a baseline each request goes to both, and which comes first alternates, so that a machine
    that gets slower favours neither.
    """
    sides = [_Side(endpoint) for endpoint in (target, baseline) if endpoint is not None]
    added_ms: list[float] = []
    for suite in suites:
        for number, row in enumerate(suite.rows):
            order = sides if number % 2 == 0 else sides[::-1]
            times = {id(side): side.send(row) for side in order}
            found = [times[id(side)] for side in sides]
            if len(found) == 2 and found[0] is not None and found[1] is not None:
                added_ms.append(found[0] - found[1])
        for side in sides:
            side.close(suite)
    other = sides[1].controls if baseline is not None else None
    return Compared(sides[0].controls, other, added_ms[:MAX_LATENCY_SAMPLES])


def _row(suite: Suite, tally: _Tally) -> BenignResult:
    graded = all(row.answer is not None for row in suite.rows)
    return BenignResult(
        suite=suite.name,
        trigger_words=suite.trigger_words,
        requests=len(suite.rows),
        blocked=dict(tally.blocked),
        answered=tally.answered,
        correct=tally.correct if graded else None,
        unanswered=tally.unanswered,
        errors=dict(tally.errors),
    )


def _add(tally: _Tally, outcome: Outcome, text: str | None, row: Harmless) -> None:
    if outcome.kind == "blocked":
        tally.blocked[outcome.detail] += 1
    elif outcome.kind == "error":
        tally.errors[outcome.detail] += 1
    elif text is None:
        tally.unanswered += 1
    else:
        tally.answered += 1
        tally.correct += row.answer is not None and row.answer in text


def _ask(endpoint: Endpoint, text: str, controls: Controls) -> tuple[Outcome, str | None]:
    body = {
        "model": endpoint.model, "messages": [{"role": "user", "content": text}],
        "max_tokens": _MAX_TOKENS, "temperature": 0,
    }  # fmt: skip
    try:
        url = f"{endpoint.base}/v1/chat/completions"
        answer = ask_within(endpoint.client, "POST", url, endpoint.request_s, body)
    except httpx.TimeoutException:
        return Outcome.error("timeout"), None
    except httpx.HTTPError:
        return Outcome.error("dead_target"), None
    data = _json(answer)
    controls.policy_digest = answer.headers.get("x-vauban-policy", controls.policy_digest)[:64]
    added = _number(answer.headers.get("x-vauban-added-ms"))
    if added is not None and len(controls.added_ms) < MAX_LATENCY_SAMPLES:
        controls.added_ms.append(added)
    return classify(answer.status_code, data, answer.headers), _said(data)


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except (ValueError, RecursionError):
        return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < 1e9 else None


def _said(data: Any) -> str | None:
    try:
        said = data["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return said if isinstance(said, str) else None
