"""A receipt is good for one call as it was approved, and for nothing else."""

from __future__ import annotations

import base64
import json
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.access.approval import Approval, Call, State
from vauban.access.receipt import ReceiptRefused, Receipts, verify_receipt

NOW = 1_800_000_000.0
ARGUMENTS = {"to": "a@example.org", "n": 1.5, "text": "grüße \u202e"}
CALLS = (
    Call(
        "call_1",
        "send_email",
        r'{"n":1.5,"text":"gr\u00fc\u00dfe \u202e","to":"a@example.org"}',
        "",
        "destructive",
    ),
    Call("call_2", "pay", '{"amount":1}', "", "rule", namespace="bank"),
)
APPROVAL = Approval(
    "apr_" + "x" * 24, "key:agent0000000", CALLS, "p", NOW, NOW + 600, State.RELEASED,
    "key:approver0000", "fine", NOW + 5,
)  # fmt: skip
RECEIPTS = Receipts(b"s" * 32, 300)
KEY = RECEIPTS.public_key()
SIGNED = RECEIPTS.sign(APPROVAL, NOW)


def verify(receipt: str, key: Any = KEY, **changed: Any) -> Any:
    call = {"tool": "send_email", "arguments": ARGUMENTS, "now": NOW + 1, **changed}
    return verify_receipt(receipt, key, **call)


def test_a_receipt_says_what_was_approved() -> None:
    receipt = verify(SIGNED["call_1"])
    assert receipt.id == f"{APPROVAL.id}.0"
    assert (receipt.caller, receipt.approved_by) == ("key:agent0000000", "key:approver0000")
    assert receipt.expires == NOW + 300
    assert verify(SIGNED["call_1"], json.dumps(KEY), arguments=json.dumps(ARGUMENTS, indent=2))
    assert verify(SIGNED["call_2"], tool="bank__pay", arguments={"amount": 1}).id.endswith(".1")


def test_the_key_is_public_and_stays() -> None:
    assert "d" not in KEY
    assert Receipts(b"s" * 32, 1).public_key() == KEY != Receipts(b"t" * 32, 1).public_key()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RECEIPTS.sign(APPROVAL, NOW)


@pytest.mark.parametrize(
    ("changed", "why"),
    [({"arguments": {**ARGUMENTS, "to": "b@evil.test"}}, "other arguments"),
     ({"arguments": '{"to":"a@example.org","to":"a@example.org"}'}, "plain JSON"),
     ({"arguments": {"x": float("nan")}}, "plain JSON"), ({"tool": "pay"}, "another tool"),
     ({"now": NOW + 300}, "ended"), ({"now": NOW - 31}, "times")],
)  # fmt: skip
def test_what_does_not_fit(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(ReceiptRefused, match=why):
        verify(SIGNED["call_1"], **changed)


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_forged_receipts() -> None:
    head, body, seal = SIGNED["call_1"].split(".")
    hs256 = part({"alg": "HS256", "typ": "vauban-receipt+jwt"})
    none = part({"alg": "none", "typ": "vauban-receipt+jwt"})
    for forged in ("", "x", "a.b.c", f"{head}.{body}.", f"{none}.{body}.", f"{hs256}.{body}.{seal}",
                   f"{head}.{SIGNED['call_2'].split('.')[1]}.{seal}", "x" * 5_000, "é.é.é",
                   f"{part([])}.{body}.{seal}"):  # fmt: skip
        with pytest.raises(ReceiptRefused):
            verify(forged)
    with pytest.raises(ReceiptRefused, match="signature"):
        verify(SIGNED["call_1"], Receipts(b"t" * 32, 300).public_key())
    for key in ("", "[]", "{}", {"kty": "OKP"}, {**KEY, "x": "AA"}):
        with pytest.raises(ReceiptRefused):
            verify(SIGNED["call_1"], key)


@given(st.text(max_size=60))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(ReceiptRefused):
        verify(text)
