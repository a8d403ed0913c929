"""What a red team run found: one schema for every tool, and the only reader of its files.

Every attempt is counted once: the attacker won, a stage blocked it, the target answered and the
attack failed, nothing usable came back, or the attempt itself went wrong. The last two are never
part of a rate; they are reported beside it, and the gate limits them. No text of a prompt or an
answer is in a result.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vauban.errors import ReportError

SCHEMA_VERSION = 1
MAX_RESULT_BYTES = 16 * 1024 * 1024
MAX_ROWS = 10_000
MAX_LATENCY_SAMPLES = 10_000

Count = Annotated[int, Field(ge=0, le=10_000_000)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Tally = Annotated[dict[Name, Count], Field(max_length=32)]
Outcome = Literal["complete", "target_dead", "rate_limited", "time_limit", "tool_failed"]


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class ToolRun(_Part):
    """How one tool's run went. Only `complete` means that it did all it was asked for."""

    tool: Name
    version: Name
    outcome: Outcome
    detail: Annotated[str, Field(max_length=2_000)] = ""
    seconds: Annotated[float, Field(ge=0)] = 0.0


class Provenance(_Part):
    """What was attacked, by what, and when.

    `policy_digest` and `server_build` are what the server said, "unknown" where it did not.
    `target_note` says what a reader of the numbers must know of the target.
    """

    vauban: Name
    started: Name
    command: Annotated[str, Field(max_length=2_000)] = ""
    target: Name = "unknown"
    model: Name = "unknown"
    target_note: Annotated[str, Field(max_length=500)] = ""
    profile: Name = "quick"
    seed: int = 0
    policy_digest: Name = "unknown"
    server_build: Name = "unknown"
    hardware: Annotated[str, Field(max_length=300)] = ""


class AttackResult(_Part):
    """One probe or attack under one judge.

    `attempts` = `wins` + all of `blocked` + `resisted` + `unanswered` + all of `errors`.
    `blocked` counts by the stage of the server that said no; `errors` by kind (`dead_target`,
    `rate_limited`, `timeout`, `server_error`, `rejected`, `tool`). `weak_judge`: whatever was
    answered and not refused counts as won.
    """

    tool: Name
    family: Name
    name: Name
    judge: Name
    weak_judge: bool = False
    attempts: Count
    wins: Count
    blocked: Tally = Field(default_factory=dict)
    resisted: Count
    unanswered: Count = 0
    errors: Tally = Field(default_factory=dict)

    @property
    def judged(self) -> int:
        """Attempts with an outcome: the denominator of the attack's success."""
        return self.wins + sum(self.blocked.values()) + self.resisted

    @model_validator(mode="after")
    def _every_attempt_once(self) -> Self:
        if self.attempts != self.judged + self.unanswered + sum(self.errors.values()):
            raise ValueError("attempts must be the sum of all outcomes")
        return self


class BenignResult(_Part):
    """Harmless requests of one suite. `trigger_words`: they talk like attacks (over-defence).

    `requests` = all of `blocked` + `answered` + `unanswered` + all of `errors`. `correct` counts
    right answers among `answered`, None where the suite has no right answers.
    """

    suite: Name
    trigger_words: bool
    requests: Count
    blocked: Tally = Field(default_factory=dict)
    answered: Count
    correct: Count | None = None
    unanswered: Count = 0
    errors: Tally = Field(default_factory=dict)

    @property
    def judged(self) -> int:
        return sum(self.blocked.values()) + self.answered

    @model_validator(mode="after")
    def _every_request_once(self) -> Self:
        if self.requests != self.judged + self.unanswered + sum(self.errors.values()):
            raise ValueError("requests must be the sum of all outcomes")
        if self.correct is not None and self.correct > self.answered:
            raise ValueError("correct must not be above answered")
        return self


class Latency(_Part):
    """Milliseconds added to benign requests, each as `source` measured it.

    `server`: what its guard says. `baseline`: the time of a request less that of the same request
    to the unguarded server, which may be below 0.
    """

    source: Literal["server", "baseline"]
    added_ms: Annotated[list[float], Field(max_length=MAX_LATENCY_SAMPLES)]


class Unguarded(_Part):
    """The same model without the guard (`--baseline`), asked and attacked in the same way."""

    target: Name = "unknown"
    model: Name = "unknown"
    server_build: Name = "unknown"
    tools: Annotated[list[ToolRun], Field(max_length=100)]
    attacks: Annotated[list[AttackResult], Field(max_length=MAX_ROWS)]
    benign: Annotated[list[BenignResult], Field(max_length=100)] = Field(default_factory=list)


class Result(_Part):
    """A whole run."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    provenance: Provenance
    tools: Annotated[list[ToolRun], Field(max_length=100)]
    attacks: Annotated[list[AttackResult], Field(max_length=MAX_ROWS)]
    benign: Annotated[list[BenignResult], Field(max_length=100)] = Field(default_factory=list)
    latency: Latency | None = None
    unguarded: Unguarded | None = None

    @model_validator(mode="after")
    def _rows_are_different(self) -> Self:
        attacks = [(a.tool, a.name, a.judge) for a in self.attacks]
        suites = [b.suite for b in self.benign]
        if len(set(attacks)) < len(attacks) or len(set(suites)) < len(suites):
            raise ValueError("an attack or a suite is there twice")
        return self


def read_result(path: Path) -> Result:
    """Read a result file.

    :raises ReportError: missing, too large, cut off, not a result, or of another version.
    """
    data = read_bounded(path, MAX_RESULT_BYTES)
    try:
        return Result.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200] or "the file"
        if first["type"] == "json_invalid":
            raise ReportError(f"{path}: cut off or not JSON ({first['msg']})") from None
        if where == "schema_version":
            raise ReportError(
                f"{path}: another version of the schema; this vauban reads version"
                f" {SCHEMA_VERSION}. Run the red team again with this version"
            ) from None
        raise ReportError(f"{path}: not a red team result: {where}: {first['msg']}") from None


def write_result(result: Result, path: Path) -> None:
    """Write it in one step, so that a reader never sees half a file.

    :raises ReportError: the file can't be written.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink()
        raise ReportError(f"{path}: can't be written: {error.strerror}") from None


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """All of a file.

    :raises ReportError: it can't be read or is over the limit.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise ReportError(f"{path}: can't be read: {error.strerror}") from None
    if len(data) > limit_bytes:
        raise ReportError(f"{path}: over {limit_bytes} bytes")
    return data
