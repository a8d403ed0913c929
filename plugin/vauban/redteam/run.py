"""A whole run: harmless controls, then the tools, then one result."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from rich.console import Console

from vauban import __version__
from vauban.errors import RedTeamError
from vauban.redteam.benign import Controls, Suite, send_controls, tasks, trigger_words
from vauban.redteam.garak_run import GarakSettings, run_garak
from vauban.redteam.process import OF_HOPELESS
from vauban.redteam.pyrit_run import Attacker, PyritSettings, run_pyrit
from vauban.redteam.relay import Bounds, Relay
from vauban.redteam.result import (
    AttackResult,
    Latency,
    Provenance,
    Result,
    ToolRun,
)

CONTROLS = "controls"
_PREFLIGHT_S = 15
_SERVER_VERSION = "/version"


@dataclass(frozen=True, slots=True)
class Settings:
    """What to attack, with what. `limit_s` is per tool; None takes the profile's own."""

    target: str
    model: str | None = None
    key: str | None = None
    profile: str = "quick"
    seed: int = 0
    limit_s: float | None = None
    bounds: Bounds = field(default_factory=Bounds)
    note: str = ""
    command: str = ""
    hardware: str = ""
    attacker: Attacker | None = None
    suites: Sequence[Suite] = field(
        default_factory=lambda: (
            Suite("tasks", trigger_words=False, rows=tasks()),
            Suite("trigger words", trigger_words=True, rows=trigger_words()),
        )
    )

    @property
    def base(self) -> str:
        return self.target.rstrip("/").removesuffix("/v1")


Runner = Callable[[Relay, str, Settings, Path, Console], tuple[ToolRun, list[AttackResult]]]


def _garak(
    relay: Relay, model: str, settings: Settings, scratch: Path, console: Console
) -> tuple[ToolRun, list[AttackResult]]:
    chosen = GarakSettings.of(settings.profile, settings.limit_s)
    return run_garak(relay, model, chosen, settings.seed, scratch, console)


def _pyrit(
    relay: Relay, model: str, settings: Settings, scratch: Path, console: Console
) -> tuple[ToolRun, list[AttackResult]]:
    chosen = PyritSettings.of(settings.profile, settings.limit_s, settings.attacker)
    return run_pyrit(relay, model, chosen, settings.seed, scratch, console)


RUNNERS: Mapping[str, Runner] = {"garak": _garak, "pyrit": _pyrit}


def run_all(tools: Sequence[str], settings: Settings, console: Console) -> Result:
    """Run the controls and the tools.

    A target that fails in the middle ends up in the result; one that is not there at all is an
    error, since there is nothing to report.

    :raises RedTeamError: the target does not answer, or has no model of that name.
    :raises ToolFailed: a tool can't be installed.
    """
    started = datetime.now(UTC)
    headers = {"authorization": f"Bearer {settings.key}"} if settings.key else {}
    with httpx.Client(
        timeout=settings.bounds.request_s, trust_env=False, headers=headers
    ) as client:
        model = _preflight(client, settings)
        build = _server_build(client, settings)
        began = time.monotonic()
        with console.status("Sending harmless requests"):
            controls = send_controls(client, settings.base, model, settings.suites)
        runs = [_controls_run(controls, time.monotonic() - began)]
    attacks: list[AttackResult] = []
    digest = controls.policy_digest
    for tool in tools:
        with (
            tempfile.TemporaryDirectory(prefix=f"vauban-{tool}-") as scratch,
            Relay(settings.base, settings.key, settings.bounds) as relay,
        ):
            run, found = RUNNERS[tool](relay, model, settings, Path(scratch), console)
            digest = relay.books.policy_digest if digest == "unknown" else digest
        console.print(_line(run, found), highlight=False, markup=False)
        runs.append(run)
        attacks += found
    return Result(
        provenance=Provenance(
            vauban=__version__, started=started.isoformat(timespec="seconds"),
            command=settings.command, target=_host(settings.base), model=model,
            target_note=settings.note, profile=settings.profile, seed=settings.seed,
            policy_digest=digest, server_build=build, hardware=settings.hardware,
        ),
        tools=runs, attacks=attacks, benign=controls.suites,
        latency=Latency(source="server", added_ms=controls.added_ms) if controls.added_ms else None,
    )  # fmt: skip


def _controls_run(controls: Controls, seconds: float) -> ToolRun:
    kind = controls.hopeless
    outcome = "complete" if kind is None else OF_HOPELESS[kind]
    return ToolRun(
        tool=CONTROLS, version=__version__, outcome=outcome, seconds=round(seconds, 1),
        detail=f"no answer any more: {kind}" if kind else "",
    )  # fmt: skip


def _preflight(client: httpx.Client, settings: Settings) -> str:
    """The model to ask for."""
    try:
        answer = client.get(f"{settings.base}/v1/models", timeout=_PREFLIGHT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        name = type(error).__name__
        raise RedTeamError(f"{_host(settings.base)} does not answer ({name})") from None
    if answer.status_code in (401, 403):
        raise RedTeamError("the target wants a key; put one into OPENAI_API_KEY")
    if settings.model is not None:
        return settings.model
    try:
        return str(answer.json()["data"][0]["id"])[:200]
    except (ValueError, KeyError, IndexError, TypeError):
        raise RedTeamError("the target does not list its models; name one by --model") from None


def _server_build(client: httpx.Client, settings: Settings) -> str:
    try:
        answer = client.get(settings.base + _SERVER_VERSION, timeout=_PREFLIGHT_S)
        version = str(answer.json()["version"])[:100]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return "unknown"
    return version if version.isprintable() and version else "unknown"


def _host(url: str) -> str:
    """Without path, query and credentials: a result is shown around."""
    parts = urlsplit(url)
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return f"{parts.hostname or 'unknown'}{port}"


def _line(run: ToolRun, attacks: Sequence[AttackResult]) -> str:
    wins, judged = sum(a.wins for a in attacks), sum(a.judged for a in attacks)
    lost = sum(a.attempts for a in attacks) - judged
    line = f"{run.tool} {run.version}: {run.outcome}, {wins} of {judged} attempts won"
    line += f", {lost} without an outcome" if lost else ""
    return f"{line}. {run.detail}" if run.detail else line
