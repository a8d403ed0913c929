"""A whole run: harmless controls, then the tools, then one result."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from rich.console import Console

from vauban import __version__
from vauban.errors import RedTeamError
from vauban.redteam.benign import Suite, suites_of
from vauban.redteam.controls import Compared, Controls, Endpoint, ask_within, send_controls
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
    Unguarded,
)

CONTROLS = "controls"
_PREFLIGHT_S = 15
_SERVER_VERSION = "/version"


@dataclass(frozen=True, slots=True)
class Server:
    """An OpenAI-compatible endpoint, with or without `/v1`. `model` None: the first it lists."""

    url: str
    model: str | None = None
    key: str | None = None

    @property
    def base(self) -> str:
        return self.url.rstrip("/").removesuffix("/v1")


@dataclass(frozen=True, slots=True)
class Settings:
    """What to attack, with what. `limit_s` is per tool; None takes the profile's own.

    `baseline`: the same model without the guard. `parallel`: requests at once of a tool.
    `notes`: what readers must know of a target that lists this among its models, where `note`
    says nothing.
    """

    target: Server
    baseline: Server | None = None
    profile: str = "quick"
    seed: int = 0
    parallel: int = 4
    limit_s: float | None = None
    bounds: Bounds = field(default_factory=Bounds)
    note: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    hardware: str = ""
    attacker: Attacker | None = None
    suites: Sequence[Suite] | None = None


Runner = Callable[[Relay, str, Settings, Path, Console], tuple[ToolRun, list[AttackResult]]]


def _garak(
    relay: Relay, model: str, settings: Settings, scratch: Path, console: Console
) -> tuple[ToolRun, list[AttackResult]]:
    chosen = GarakSettings.of(settings.profile, settings.parallel, settings.limit_s)
    return run_garak(relay, model, chosen, settings.seed, scratch, console)


def _pyrit(
    relay: Relay, model: str, settings: Settings, scratch: Path, console: Console
) -> tuple[ToolRun, list[AttackResult]]:
    chosen = PyritSettings.of(
        settings.profile, settings.parallel, settings.limit_s, settings.attacker
    )
    return run_pyrit(relay, model, chosen, settings.seed, scratch, console)


RUNNERS: Mapping[str, Runner] = {"garak": _garak, "pyrit": _pyrit}


@dataclass
class _Side:
    """One server, and what was found there."""

    server: Server
    endpoint: Endpoint
    build: str
    listed: Sequence[str]
    tools: list[ToolRun] = field(default_factory=list)
    attacks: list[AttackResult] = field(default_factory=list)
    digest: str = "unknown"


def run_all(tools: Sequence[str], settings: Settings, console: Console) -> Result:
    """Run the controls and the tools, against the baseline as well where there is one.

    A target that fails in the middle ends up in the result; one that is not there at all is an
    error, since there is nothing to report.

    :raises RedTeamError: a server does not answer, or has no model of that name.
    :raises ToolFailed: a tool can't be installed.
    """
    started = datetime.now(UTC)
    with ExitStack() as stack:
        target = _side(stack, settings.target, settings)
        sides = [target]
        if settings.baseline is not None:
            sides.append(_side(stack, settings.baseline, settings))
        compared = _send_harmless(sides, settings, console)
    for tool in tools:
        for side in sides:
            run, found = _attack(tool, side, settings, console)
            what = "" if side is target else " without the guard"
            console.print(_line(run, found, what), highlight=False, markup=False)
    return Result(
        provenance=Provenance(
            vauban=__version__, started=started.isoformat(timespec="seconds"),
            command=settings.command, target=_host(target.endpoint.base),
            model=target.endpoint.model, target_note=_note(settings, target.listed),
            profile=settings.profile,
            seed=settings.seed, policy_digest=target.digest, server_build=target.build,
            hardware=settings.hardware,
        ),
        tools=target.tools, attacks=target.attacks, benign=compared.target.suites,
        latency=_latency(compared), unguarded=_unguarded(sides, compared),
    )  # fmt: skip


def _side(stack: ExitStack, server: Server, settings: Settings) -> _Side:
    headers = {"authorization": f"Bearer {server.key}"} if server.key else {}
    client = stack.enter_context(
        httpx.Client(timeout=settings.bounds.request_s, trust_env=False, headers=headers)
    )
    listed = _preflight(client, server)
    model = listed[0][:200] if server.model is None else server.model
    endpoint = Endpoint(client, server.base, model, settings.bounds.request_s)
    return _Side(server, endpoint, _server_build(client, server), listed)


def _note(settings: Settings, listed: Sequence[str]) -> str:
    return settings.note or next((n for m, n in settings.notes.items() if m in listed), "")


def _send_harmless(sides: Sequence[_Side], settings: Settings, console: Console) -> Compared:
    suites = suites_of(settings.profile) if settings.suites is None else settings.suites
    began = time.monotonic()
    with console.status("Sending harmless requests"):
        beside = sides[1].endpoint if len(sides) > 1 else None
        compared = send_controls(sides[0].endpoint, suites, beside)
    seconds = time.monotonic() - began
    for side, controls in zip(sides, (compared.target, compared.baseline), strict=False):
        if controls is not None:
            side.tools.append(_controls_run(controls, seconds))
            side.digest = controls.policy_digest
    return compared


def _attack(
    tool: str, side: _Side, settings: Settings, console: Console
) -> tuple[ToolRun, list[AttackResult]]:
    with (
        tempfile.TemporaryDirectory(prefix=f"vauban-{tool}-") as scratch,
        Relay(side.server.base, side.server.key, settings.bounds) as relay,
    ):
        run, found = RUNNERS[tool](relay, side.endpoint.model, settings, Path(scratch), console)
        side.digest = relay.books.policy_digest if side.digest == "unknown" else side.digest
    side.tools.append(run)
    side.attacks += found
    return run, found


def _latency(compared: Compared) -> Latency | None:
    if compared.baseline is not None:
        return Latency(source="baseline", added_ms=compared.added_ms)
    if not compared.target.added_ms:
        return None
    return Latency(source="server", added_ms=compared.target.added_ms)


def _unguarded(sides: Sequence[_Side], compared: Compared) -> Unguarded | None:
    if compared.baseline is None:
        return None
    side = sides[1]
    return Unguarded(
        target=_host(side.endpoint.base), model=side.endpoint.model, server_build=side.build,
        tools=side.tools, attacks=side.attacks, benign=compared.baseline.suites,
    )  # fmt: skip


def _controls_run(controls: Controls, seconds: float) -> ToolRun:
    kind = controls.hopeless
    outcome = "complete" if kind is None else OF_HOPELESS[kind]
    return ToolRun(
        tool=CONTROLS, version=__version__, outcome=outcome, seconds=round(seconds, 1),
        detail=f"no answer any more: {kind}" if kind else "",
    )  # fmt: skip


def _preflight(client: httpx.Client, server: Server) -> list[str]:
    """The models that it lists: at least one where none is named."""
    host = _host(server.base)
    try:
        answer = ask_within(client, "GET", f"{server.base}/v1/models", _PREFLIGHT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RedTeamError(f"{host} does not answer ({type(error).__name__})") from None
    if answer.status_code in (401, 403):
        raise RedTeamError(
            f"{host} wants a key: OPENAI_API_KEY for the target, VAUBAN_BASELINE_KEY for --baseline"
        )
    try:
        listed = [str(entry["id"]) for entry in answer.json()["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        listed = []
    if not listed and server.model is None:
        raise RedTeamError(f"{host} does not list its models; name one by --model")
    return listed


def _server_build(client: httpx.Client, server: Server) -> str:
    try:
        answer = ask_within(client, "GET", server.base + _SERVER_VERSION, _PREFLIGHT_S)
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


def _line(run: ToolRun, attacks: Sequence[AttackResult], what: str) -> str:
    wins, judged = sum(a.wins for a in attacks), sum(a.judged for a in attacks)
    lost = sum(a.attempts for a in attacks) - judged
    line = f"{run.tool} {run.version}{what}: {run.outcome}, {wins} of {judged} attempts won"
    line += f", {lost} without an outcome" if lost else ""
    return f"{line}. {run.detail}" if run.detail else line
