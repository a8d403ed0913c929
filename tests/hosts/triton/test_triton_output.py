"""The way back: an answer and a verdict about the same request, and nothing else."""

from __future__ import annotations

import json

import pytest
from triton_fakes import SECRET, MakeInput, completion

from vauban.errors import MalformedRequest
from vauban.hosts.triton.encoder import VERDICT
from vauban.hosts.triton.output import GuardOutput, Jobs
from vauban.hosts.triton.seal import Bundle, Seal
from vauban.mark import RESERVED_KEY, Order, Sealer
from vauban.policy import AnswerPolicy


class Shouting:
    """A filter with state: one character is always held back."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        whole = self._held + text.upper()
        self._held = whole[-1:]
        return whole[:-1]

    def end(self) -> str:
        return self._held


@pytest.fixture
def jobs(seal: Seal) -> Jobs:
    return Jobs(seal, Sealer(SECRET))


def verdict(seal: Seal, ticket: str, *, blocked: bool = False) -> bytes:
    return seal.close(VERDICT, Bundle(ticket, {"blocked": blocked, "reason": "x", "score": 0.0}))


def test_the_llm_is_told_that_the_verdict_is_made(make_input: MakeInput, jobs: Jobs) -> None:
    job = jobs.open(make_input()(completion("hello", max_tokens=3), "")[0])
    sampling = json.loads(job.inputs["sampling_parameters"])
    mark = Sealer(SECRET).open_mark(sampling["extra_args"][RESERVED_KEY])
    assert mark is not None
    assert mark.order is Order.PASS
    assert sampling["max_tokens"] == 3
    assert job.inputs["text_input"] == "hello"
    assert job.inputs["exclude_input_in_output"] is True
    assert job.repeat == "hello"


def test_a_prompt_is_served_once(make_input: MakeInput, jobs: Jobs) -> None:
    sealed = make_input()(completion("hello"), "")[0]
    jobs.open(sealed)
    with pytest.raises(MalformedRequest):
        jobs.open(sealed)


def test_an_answer_comes_out_with_its_own_verdict_only(
    make_input: MakeInput, seal: Seal, jobs: Jobs
) -> None:
    output = GuardOutput(AnswerPolicy(), seal)
    job = jobs.open(make_input()(completion("hello "), "")[0])
    answer = jobs.close(job, {"text_output": ["there"], "finish_reason": ["stop"]})
    assert b"there" not in answer
    passed = output(verdict(seal, job.ticket), answer)
    assert passed == {"text_output": ["hello there"], "finish_reason": ["stop"]}
    for other in (verdict(seal, "another"), b"", answer):
        with pytest.raises(MalformedRequest):
            output(other, answer)


def test_an_answer_may_take_longer_than_a_prompt_may_wait() -> None:
    now = [1000.0]
    seal = Seal(SECRET, lambda: now[0])
    job = Jobs(seal, Sealer(SECRET)).open(
        seal.close(
            "prompt",
            Bundle(
                "t", {"text": "a", "sampling": {}, "stream": False, "repeat": "", "options": []}
            ),
        )
    )
    judged = verdict(seal, job.ticket)
    now[0] += 3600
    answer = Jobs(seal, Sealer(SECRET)).close(job, {"text_output": ["done"]})
    assert GuardOutput(AnswerPolicy(), seal)(judged, answer) == {"text_output": ["done"]}


def test_a_blocked_answer_is_replaced(make_input: MakeInput, seal: Seal, jobs: Jobs) -> None:
    output = GuardOutput(AnswerPolicy(refusal="No."), seal)
    job = jobs.open(make_input()(completion("hello "), "")[0])
    answer = jobs.close(job, {"text_output": ["there"]})
    passed = output(verdict(seal, job.ticket, blocked=True), answer)
    assert passed["text_output"] == ["No."]


def test_a_filter_sees_whole_and_streamed_answers_alike(seal: Seal) -> None:
    output = GuardOutput(AnswerPolicy(), seal, Shouting)
    outgoing = output.outgoing("")
    parts = [outgoing.part({"text_output": [a, b]}) for a, b in (("ab", "x"), ("cd", "yz"))]
    rest = outgoing.end()
    assert rest is not None
    texts = [
        "".join(column) for column in zip(*(p["text_output"] for p in [*parts, rest]), strict=True)
    ]
    assert texts == ["ABCD", "XYZ"]
    assert output.outgoing("").end() is None


def test_a_filter_edits_a_whole_answer_to_its_end(
    seal: Seal, jobs: Jobs, make_input: MakeInput
) -> None:
    output = GuardOutput(AnswerPolicy(), seal, Shouting)
    job = jobs.open(make_input()(completion("say "), "")[0])
    answer = jobs.close(job, {"text_output": ["abc"]})
    assert output(verdict(seal, job.ticket), answer)["text_output"] == ["say ABC"]
