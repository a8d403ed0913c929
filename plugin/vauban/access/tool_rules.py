"""Whether a tool call may leave the server: allow, ask a person first, or deny.

A pure function of the policy, the call, and whether the model had read text of tools or documents
when it made it. More against a call never makes the answer milder.

Covers: calls that the server has parsed out of the model's text. Does not cover: a call that a
client parses out of the text by itself, and what a tool does with arguments that keep the rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry

from vauban.access import arguments as args
from vauban.access.tool_names import MAX_NAME_CHARS, is_destructive, plain, suffixes
from vauban.errors import PolicyError
from vauban.policy_tools import ToolRule, ToolsPolicy


class ToolDecision(IntEnum):
    """What to do with a call, ordered so that `max` is always the safe combination."""

    ALLOW = 0
    ASK = 1
    DENY = 2


class Why(StrEnum):
    """What a ruling follows from. Shown to clients, in metrics and in audit events."""

    DEFAULT = "default"
    """No rule, and a harmless name."""
    RULE = "rule"
    UNLISTED = "unlisted"
    DESTRUCTIVE = "destructive"
    TAINTED = "tainted"
    NOT_JSON = "not_json"
    TOO_LARGE = "too_large"
    SCHEMA = "schema"
    RECIPIENT = "recipient"
    AMOUNT = "amount"
    PATH = "path"
    LEAK = "leak"
    """The texts of the calls, put together, say what must not leave."""
    NAME = "name"
    """Longer than any tool's name."""
    READ_LATER = "read_later"
    """It would ask, and nobody is there who could come back with an approval."""
    TOO_MANY = "too_many"
    """The caller has asked for too many approvals."""
    FAILED = "failed"
    """It could not be judged or kept; see `guard.py`."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """`arguments`: canonical; empty where nothing had to be read."""

    decision: ToolDecision
    why: Why
    arguments: str = ""


class ToolRules:
    """The policy, ready to be asked.

    :raises PolicyError: two rules for one tool.
    """

    def __init__(self, policy: ToolsPolicy) -> None:
        self._policy = policy
        self._verbs = frozenset(filter(None, map(plain, policy.destructive_verbs)))
        self._rules: dict[str, _Checked] = {}
        for name, rule in policy.rules.items():
            if not plain(name) or plain(name) in self._rules:
                raise PolicyError(f"tools.rules.{name}: no name, or the name of another rule")
            self._rules[plain(name)] = _Checked(rule)

    def judge(self, name: str, arguments: str, *, tainted: bool) -> Ruling:
        """
        :param name: as the model wrote it. :param arguments: JSON, as the model wrote it.
        :param tainted: the model has read tool results or documents.
        """
        if len(name) > MAX_NAME_CHARS:
            return Ruling(ToolDecision.DENY, Why.NAME)
        base = self._unlisted(name)
        rule = self._rules.get(plain(name))
        if rule is None:
            # `read_file` says nothing of another server's `evil.read_file`, but that it is not to
            # be freer than the rule.
            known = [self._rules[s] for s in suffixes(name) if s in self._rules]
            rule = known[0] if known else None
        else:
            base = Ruling(ToolDecision.ALLOW, Why.RULE)
        if rule is None and base.decision is not ToolDecision.ASK:
            return base
        return self._with_arguments(base, rule, arguments, tainted=tainted)

    def _with_arguments(
        self, base: Ruling, rule: _Checked | None, text: str, *, tainted: bool
    ) -> Ruling:
        read = self.read(text)
        if isinstance(read, Why):
            return Ruling(ToolDecision.DENY, read)
        rulings = [base] if rule is None else [base, *rule.rulings(read, tainted=tainted)]
        worst = max(rulings, key=lambda ruling: ruling.decision)
        return Ruling(worst.decision, worst.why, args.canonical(read))

    def read(self, text: str) -> dict[str, Any] | Why:
        """Arguments that are within bounds and have one reading, or why they are not."""
        limit = self._policy.max_call_bytes
        if len(text.encode("utf-8", "surrogatepass")) > limit:
            return Why.TOO_LARGE
        try:
            read = args.parse(text)
        except args.NotArguments:
            return Why.NOT_JSON
        # An escape is longer than its character.
        return Why.TOO_LARGE if len(args.canonical(read)) > limit else read

    def _unlisted(self, name: str) -> Ruling:
        policy = self._policy
        rulings = [Ruling(ToolDecision.ALLOW, Why.DEFAULT)]
        if policy.rules:
            rulings.append(Ruling(ToolDecision[policy.unlisted.upper()], Why.UNLISTED))
        if is_destructive(name, self._verbs):
            rulings.append(Ruling(ToolDecision[policy.destructive.upper()], Why.DESTRUCTIVE))
        return max(rulings, key=lambda ruling: ruling.decision)


class _Checked:
    """One tool's rule."""

    def __init__(self, rule: ToolRule) -> None:
        self._rule = rule
        # A registry of its own: the default one would fetch what a $ref points to.
        self._schema = rule.arguments and Draft202012Validator(rule.arguments, registry=Registry())

    def rulings(self, arguments: dict[str, Any], *, tainted: bool) -> list[Ruling]:
        rule = self._rule
        found = [Ruling(ToolDecision[rule.action.upper()], Why.RULE)]
        if tainted:
            found.append(Ruling(ToolDecision[rule.tainted.upper()], Why.TAINTED))
        otherwise = ToolDecision[rule.otherwise.upper()]
        found.extend(Ruling(otherwise, why) for why in self._broken(arguments))
        return found

    def _broken(self, arguments: dict[str, Any]) -> list[Why]:
        rule = self._rule
        kept = {
            Why.SCHEMA: not self._schema or self._schema.is_valid(arguments),
            Why.RECIPIENT: all(
                args.is_within_hosts(value, hosts)
                for path, hosts in rule.recipients.items()
                for value in args.at(arguments, path)
            ),
            Why.AMOUNT: all(
                args.is_at_most(value, limit)
                for path, limit in rule.amounts.items()
                for value in args.at(arguments, path)
            ),
            Why.PATH: all(
                args.is_below(value, directories)
                for path, directories in rule.paths.items()
                for value in args.at(arguments, path)
            ),
        }
        return [why for why, holds in kept.items() if not holds]
