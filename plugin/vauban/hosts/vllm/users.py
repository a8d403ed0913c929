"""The users' routes: who is at which level, and an operator's say in it. Scope `admin` only.

    GET    /vauban/users?level=banned&campaign=NAME&limit=100&after=ID
                                                            {"users": [...], "next": ID | null}
    GET    /vauban/users/ID                                 one user, and what the level is made of
    POST   /vauban/users/ID/ban    {"reason", "seconds"?}
    POST   /vauban/users/ID/unban  {"reason"}               forgives, too
    POST   /vauban/users/ID/level  {"level", "reason", "seconds"?}
    DELETE /vauban/users/ID                                 erase what is kept of a user

ID is a principal id (`key:...`, `jwt:...`, `anon:...`), percent-encoded. `current` in an answer is
false while the store is lost: it is then what this server last knew.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from vauban.access.identity import PRINCIPAL_ID
from vauban.access.standing import Record, Standing
from vauban.errors import MalformedRequest, NotFound, StandingUnknown, StateUnavailable
from vauban.hosts.vllm.answers import Answer
from vauban.hosts.vllm.front import Front
from vauban.hosts.vllm.query import read_limit, read_query
from vauban.treatment import moment
from vauban.types import Evidence, Level, Principal

MAX_USERS_LISTED: Final = 1_000
MAX_REASON_CHARS: Final = 500
_LONGEST_S: Final = 3650 * 86_400
_PATH: Final = re.compile(r"/vauban/users(?:/(?P<id>.+?)(?:/(?P<act>ban|unban|level))?)?")

B = TypeVar("B", bound=BaseModel)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control characters are not taken")
    return text


GivenReason = Annotated[
    str, Field(min_length=1, max_length=MAX_REASON_CHARS), AfterValidator(_printable)
]


class _Unban(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    reason: GivenReason


class _Ban(_Unban):
    seconds: Annotated[int, Field(ge=1, le=_LONGEST_S)] | None = None


class _SetLevel(_Ban):
    level: Literal["clear", "flagged", "slowed", "degraded", "held", "banned"]


class UsersApi:
    """Answers for the ledger of one front."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def answer(
        self, method: str, path: str, query: bytes, raw: bytes, operator: Principal
    ) -> Answer:
        """:raises RequestError: not what the route takes, no such user, or the store is lost.

        :param operator: the caller.
        """
        matched = _PATH.fullmatch(path)
        if matched is None:
            raise NotFound("there is no such user")
        principal_id, act = matched["id"], matched["act"]
        if principal_id is None:
            return self._answer(await asyncio.to_thread(self._list, query))
        if act and method != "POST":  # a name that a gateway gave may end like that
            principal_id, act = f"{principal_id}/{act}", None
        _check_id(principal_id)
        if method in ("GET", "HEAD"):
            return self._answer(self._explain(principal_id))
        change = self._change(principal_id, act, raw, operator.id)
        try:
            await asyncio.to_thread(change)
        except StateUnavailable:
            raise StandingUnknown("the store does not answer; look whether it was done") from None
        return self._answer(self._explain(principal_id))

    def _change(
        self, principal_id: str, act: str | None, raw: bytes, operator: str
    ) -> Callable[[], Standing]:
        ledger = self._front.ledger
        if act is None:
            return lambda: ledger.forget(principal_id, by=operator)
        if act == "unban":
            forgiven = parsed(_Unban, raw)
            return lambda: ledger.unban(principal_id, by=operator, reason=forgiven.reason)
        if act == "ban":
            wanted = parsed(_Ban, raw)
            level, action = Level.BANNED, act
        else:
            wanted = parsed(_SetLevel, raw)
            level, action = Level[wanted.level.upper()], act
        if level >= Level.HELD and principal_id == operator:
            raise MalformedRequest("this is your own credential; use another one of scope admin")
        return lambda: ledger.set_level(
            principal_id, level, by=operator, reason=wanted.reason, seconds=wanted.seconds,
            action=action,
        )  # fmt: skip

    def _list(self, query: bytes) -> dict[str, Any]:
        asked = read_query(query, "level", "campaign", "limit", "after")
        level = asked["level"]
        if level and level.upper() not in Level.__members__:
            raise MalformedRequest("there is no such level", param="level")
        wanted = read_limit(asked["limit"], MAX_USERS_LISTED)
        users = self._front.ledger.users(
            Level[level.upper()] if level else None, campaign=asked["campaign"],
            after=asked["after"], limit=wanted,
        )  # fmt: skip
        following = users[-1].principal if len(users) == wanted else None
        return {"users": [_shown(user) for user in users], "next": following}

    def _explain(self, principal_id: str) -> dict[str, Any]:
        record = self._front.ledger.explain(principal_id)
        standing = self._front.ledger.remembered(principal_id)
        return {**_shown(standing), **_parts(record)}

    def _answer(self, body: dict[str, Any]) -> Answer:
        body["current"] = self._front.ledger.is_fresh
        return Answer(200, json.dumps(body).encode())


def _check_id(principal_id: str) -> None:
    if not PRINCIPAL_ID.fullmatch(principal_id):  # a misspelt one must not be banned with success
        raise NotFound("a user's id is key:, jwt:, anon: or gateway: and what belongs to it")


def parsed(kind: type[B], raw: bytes) -> B:
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:80]
        raise MalformedRequest(f"{where or 'body'}: {first['msg']}", param=where or None) from None


def _shown(standing: Standing) -> dict[str, Any]:
    return {
        "id": standing.principal,
        "level": standing.level.name.lower(),
        "since": moment(standing.since) if standing.level else None,
        "until": _end(standing.until),
        "by": standing.by,
        "reason": standing.reason,
        "evidence": _evidence(standing.evidence),
    }


def _parts(record: Record) -> dict[str, Any]:
    """What the level is made of."""
    found, decided = record.found, record.decided
    return {
        "found": found and {
            "level": found.level.name.lower(), "began": moment(found.began),
            "since": moment(found.since), "until": _end(found.until),
        },
        "decided": decided and {
            "level": decided.level.name.lower(), "since": moment(decided.since),
            "until": _end(decided.until), "by": decided.by, "reason": decided.reason,
        },
        "reset_at": moment(record.reset_at) if record.reset_at else None,
    }  # fmt: skip


def _end(until: float | None) -> str | None:
    return None if until is None else moment(until)


def _evidence(evidence: Evidence | None) -> dict[str, Any] | None:
    if evidence is None:
        return None
    return {
        "score": evidence.score,
        "level": evidence.level.name.lower(),
        "queries": evidence.queries,
        "signals": dict(evidence.signals),
        "campaign": evidence.campaign,
        "proposed": evidence.proposed,
    }
