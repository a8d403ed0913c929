"""Personal data: found however the text is cut, and written as the policy says."""

from __future__ import annotations

import json
import socket
import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.errors import ConfigError
from vauban.policy_output import OutputPolicy
from vauban.text.pii import Pii, load_pii
from vauban.text.sanitize import Sanitizer, Stream

SECRET = b"s" * 32
MAIL = "john.o-brien+x@mail.example.co.uk"
PHONE = "+1 (212) 555-0123"
CARD = "4111 1111 1111 1111"
IBAN = "GB29 NWBK 6016 1331 9268 19"
SSN = "536-90-4399"
VALUES = {
    "EMAIL_ADDRESS": MAIL, "PHONE_NUMBER": PHONE, "CREDIT_CARD": CARD, "IBAN_CODE": IBAN,
    "US_SSN": SSN,
}  # fmt: skip
_loaded: dict[str, Pii] = {}


def rules(pii: str = "redact", **fields: Any) -> Sanitizer:
    policy = OutputPolicy(pii=pii, **fields)  # type: ignore[arg-type]
    key = policy.model_dump_json()
    if key not in _loaded:
        found = load_pii(policy, SECRET)
        assert found is not None
        _loaded[key] = found
    return Sanitizer(policy, pii=_loaded[key])


def said(made: Sanitizer, pieces: list[str], **options: Any) -> tuple[str, Stream]:
    stream = made.stream(**options)
    return "".join([*map(stream.feed, pieces), stream.finish()]), stream


def out(text: str, pii: str = "redact", **fields: Any) -> str:
    return said(rules(pii, **fields), [text])[0]


@pytest.mark.parametrize("around", ["{}", "It is {}.", "a: {}, b", "({})\n", "\n{}\n", '"{}"'])
@pytest.mark.parametrize("kind", VALUES)
def test_what_is_found(kind: str, around: str) -> None:
    text = around.format(VALUES[kind])
    result = out(text)
    assert f"[redacted: {kind}]" in result
    assert not any(part in result for part in VALUES[kind].split(" ") if len(part) > 2)
    assert len(around.format("")) <= len(result.replace(f"[redacted: {kind}]", "")) + 1


@pytest.mark.parametrize(
    "text",
    [
        "Version 3.11.2 of 2026-11-26, on line 1024, costs 12,345.67 in all.",
        "x@y and @name and a @ b", "0x1F 2 3 4 5 6 7 8 9", "1 2 3 4", "the year 1999",
        "```\nfor i in range(100): a[i] = 2 ** 31\n```", "4111 1111 1111 1112",
    ],
)  # fmt: skip
def test_what_is_left_alone(text: str) -> None:
    assert out(text) == text


def test_how_it_is_written() -> None:
    assert out(f"at {CARD}!", "replace", replacement="***") == "at ***!"
    assert out(f"at {CARD}!", "mask") == "at **** **** **** ****!"
    assert out(f"at {MAIL}!", "mask") == "at ****.*-*****+*@****.*******.**.**!"
    assert out(f"at {CARD}!", "monitor") == f"at {CARD}!"
    assert said(rules("monitor"), [CARD])[1].findings == {("pii", "monitor"): 1}
    assert out(f"at {CARD}! More.", "stop") == "at "
    assert said(rules("hold"), [f"at {CARD}! More."])[1].held


def test_a_hash_names_a_value_and_does_not_tell_it() -> None:
    one, same, other = (
        out(f"at {text}.", "hash") for text in (CARD, CARD.replace(" ", "-"), "5555 5555 5555 4444")
    )
    assert one == same != other
    assert one.startswith("at [CREDIT_CARD ")
    assert "4111" not in one
    elsewhere = load_pii(OutputPolicy(pii="hash"), b"t" * 32)
    assert elsewhere is not None
    assert elsewhere.mark("CREDIT_CARD", CARD) not in one


def test_in_the_arguments_of_a_tool_call() -> None:
    arguments = json.dumps({"to": MAIL, "text": f"card {CARD}", "n": 5, "card": 4111111111111111})
    for action in ("redact", "mask", "hash"):
        result = json.loads(said(rules(action), list(arguments), json=True)[0])
        assert MAIL not in result["to"]
        assert CARD not in result["text"]
        assert (result["n"], result["card"]) == (5, 4111111111111111)  # else it were no JSON


@pytest.mark.parametrize("kind", ["CREDIT_CARD", "IBAN_CODE"])
@pytest.mark.parametrize("before", range(0, 60, 7))
def test_among_many_numbers(kind: str, before: int) -> None:
    """Where a run of words goes on, it is searched piece by piece, and no border hides anything."""
    numbers = " ".join(str(n) for n in range(10, 10 + before))
    text = f"{numbers} {VALUES[kind]} {' '.join(str(n) for n in range(60, 99))}"
    result, stream = said(rules(pii_entities=(kind,)), list(text))
    assert f"[redacted: {kind}]" in result
    assert stream.findings[("pii", "redact")] == 1


fragments = st.sampled_from(
    [
        *VALUES.values(), MAIL[:9], PHONE[3:], CARD[:12], CARD.replace(" ", ""), "12 34 56 78 90",
        " ", "  ", "\n", "    ", ", ", "(", ")", "-", "@", ".", "word ", "NWBK", "7", "é", "`",
        "password: 4111111111111111", "\\n", '"', "<b>", "x" * 60, "5 " * 60, "https://a.test/",
        "a.b@c.test" * 40,
    ]
)  # fmt: skip
texts = st.lists(st.one_of(fragments, st.text("0123456789 @.-+()", max_size=12)), max_size=12)


@given(
    text=texts.map("".join), cuts=st.lists(st.integers(0, 900), max_size=12),
    action=st.sampled_from(["redact", "mask", "hash", "stop", "monitor"]), is_json=st.booleans(),
)  # fmt: skip
def test_any_cut_is_the_whole(text: str, cuts: list[int], action: str, is_json: bool) -> None:
    made = rules(action, hold_back=16)
    whole, one = said(made, [text], json=is_json)
    places = sorted({0, len(text), *(n % (len(text) + 1) for n in cuts)})
    for pieces in ([text[a:b] for a, b in pairwise(places)], list(text)):
        again, stream = said(made, pieces, json=is_json)
        assert again == whole
        assert stream.findings == one.findings


def test_what_is_held_is_bounded() -> None:
    stream = rules().stream()
    for letter in "1234 5678 " * 200 + " " * 500 + "7@" * 2_000:
        stream.feed(letter)
        assert stream.fed - stream.released < 900 + (4_096 if letter in "7@" else 0)


def test_nothing_is_asked_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    _loaded.clear()
    assert out(f"to {MAIL}") == "to [redacted: EMAIL_ADDRESS]"


def test_what_is_missing_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"PERSON can't be found without a language model"):
        load_pii(OutputPolicy(pii="redact", pii_entities=("PERSON",)), SECRET)
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(ConfigError, match=r"pip install 'vauban\[pii\]'"):
        load_pii(OutputPolicy(pii="redact"), SECRET)
    assert load_pii(OutputPolicy(), SECRET) is None
