"""Rows of results, made from a few counts."""

from __future__ import annotations

from typing import Any

from vauban.redteam.result import AttackResult, BenignResult


def attack(
    family: str = "garak.dan", wins: int = 0, blocked: int = 100, **more: Any
) -> AttackResult:
    """An attack whose attempts are the sum of its outcomes."""
    fields = {
        "tool": "garak", "name": f"{family}.X", "judge": "dan.DAN", "resisted": 0,
        "unanswered": 0, "errors": {}, **more,
    }  # fmt: skip
    total = wins + blocked + fields["resisted"] + fields["unanswered"]
    total += sum(fields["errors"].values())
    return AttackResult(
        family=family, wins=wins, blocked={"classifier": blocked} if blocked else {},
        attempts=total, **fields,
    )  # fmt: skip


def benign(blocked: int = 0, answered: int = 100, **more: Any) -> BenignResult:
    fields = {"suite": "tasks", "trigger_words": False, "unanswered": 0, "errors": {}, **more}
    total = blocked + answered + fields["unanswered"] + sum(fields["errors"].values())
    return BenignResult(
        blocked={"classifier": blocked} if blocked else {}, answered=answered, requests=total,
        **fields,
    )  # fmt: skip
