"""The sandbox as an MCP server over SSE, for `vllm serve --tool-server NAME:SECRET@HOST:PORT`.

vLLM loads it as its `python` tool. What vLLM lacks is here: a credential, an end to the number of
calls of one request, and a time after which a call ends. A client of vLLM may set headers of its
calls, so none is believed: calls are counted per connection, which vLLM opens for each request, and
per `x-session-id`, whichever is more.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context, MCPServer
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from vauban.agents.frames import Job, Reason, Result
from vauban.agents.sandbox import Sandbox
from vauban.agents.tiers import VM_TCG
from vauban.errors import BadJob, ConfigError, GuestFailed, NoIsolation, SandboxBusy
from vauban.policy import Policy
from vauban.policy_sandbox import SandboxPolicy
from vauban.telemetry import AuditLog
from vauban.types import Origin, Segment, Verdict

if TYPE_CHECKING:
    from starlette.applications import Starlette

logger = logging.getLogger(__name__)

NAME: Final = "python"
MIN_SECRET_CHARS: Final = 16
MAX_COUNTED: Final = 8_192
MAX_BODY_OVERHEAD_BYTES: Final = 65_536
_SECONDS: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_NOTES: Final = {
    Reason.SIGNALLED: "the program was ended by a signal",
    Reason.TIME_LIMIT: "time limit reached",
    Reason.CPU_LIMIT: "processor time limit reached",
    Reason.MEMORY_LIMIT: "memory limit reached",
    Reason.OUTPUT_LIMIT: "output limit reached",
    Reason.DISK_LIMIT: "the program and its files do not fit on the disk",
    Reason.GUEST_LOST: "the sandbox was lost",
}
Screen = Callable[[Segment], tuple[str, Verdict]]
LocalContext = Context[None, Request]


class Metrics:
    """Prometheus metrics of one tool server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.runs = Counter(
            "vauban_sandbox_runs",
            "Programs that were run.",
            ("tier", "reason"),
            registry=self.registry,
        )
        self.refused = Counter(
            "vauban_sandbox_refused", "Calls that ran nothing.", ("reason",), registry=self.registry
        )
        self.seconds = Histogram(
            "vauban_sandbox_seconds",
            "From the call to the result.",
            ("tier",),
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.withheld = Counter(
            "vauban_sandbox_outputs_withheld",
            "Outputs that the model did not get.",
            ("tier",),
            registry=self.registry,
        )


class CallCounts:
    """How many calls each name has made. The longest unused are forgotten."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: OrderedDict[str, int] = OrderedDict()

    def allow(self, *names: str) -> bool:
        """Count a call under all of these; False when one of them has used up its calls."""
        for name in names:
            self._counts[name] = self._counts.pop(name, 0) + 1
        allowed = all(self._counts[name] <= self._most for name in names)
        while len(self._counts) > MAX_COUNTED:
            self._counts.popitem(last=False)
        return allowed


class Tool:
    """What a call of the tool does."""

    def __init__(
        self, sandbox: Sandbox, screen: Screen, metrics: Metrics, audit: AuditLog, policy: str
    ) -> None:
        self._sandbox = sandbox
        self._screen = screen
        self._metrics = metrics
        self._audit = audit
        self._policy = policy
        self._calls = CallCounts(sandbox.policy.max_calls)
        limits = sandbox.policy
        self._threads = anyio.CapacityLimiter(limits.max_running + limits.max_waiting + 1)
        self._one_reader = threading.Lock()

    async def call(self, code: str, connection: str, session: str) -> str:
        """Run a program; what the model gets. Never empty."""
        names = [f"connection {connection}"]
        if session:  # all clients that send none would share one count
            names.append(f"session {session}")
        if not self._calls.allow(*names):
            return self._refuse("max_calls", "no more calls in this request")
        try:
            data = code.encode("utf-8", "surrogatepass")
            return await anyio.to_thread.run_sync(
                self._run, Job(data), connection, limiter=self._threads, abandon_on_cancel=True
            )
        except BadJob as error:
            return self._refuse("bad_job", str(error))
        except SandboxBusy as error:
            return self._refuse("busy", str(error))
        except (GuestFailed, NoIsolation) as error:
            logger.error("a program could not be run: %s", error)
            return self._refuse("failed", "the sandbox can't run it now")

    async def end(self, connection: str) -> None:
        await anyio.to_thread.run_sync(self._sandbox.end_session, connection)

    def _refuse(self, reason: str, text: str) -> str:
        self._metrics.refused.labels(reason).inc()
        self._audit.sandbox(action="refused", reason=reason, policy=self._policy)
        return f"[not run: {text}]"

    def _run(self, job: Job, connection: str) -> str:
        result = self._sandbox.run(job, connection)
        text = told(result, self._sandbox.policy)
        with self._one_reader:
            clean, verdict = self._screen(Segment(text, Origin.TOOL))
        self._metrics.runs.labels(result.tier, result.reason.value).inc()
        self._metrics.seconds.labels(result.tier).observe(result.total_s)
        if verdict.blocked:
            self._metrics.withheld.labels(result.tier).inc()
        self._audit.sandbox(
            action="withheld" if verdict.blocked else "run",
            tier=result.tier,
            reason=result.reason.value,
            status=result.status,
            verdict=verdict.reason.value,
            score=round(verdict.score, 4),
            code_bytes=len(job.code),
            output_bytes=len(result.out) + len(result.err),
            cpu_s=round(result.cpu_s, 3),
            total_s=round(result.total_s, 3),
            policy=self._policy,
        )
        if verdict.blocked:
            return f"[the program's output was withheld: {verdict.reason.value}]"
        return clean or "[no output]"


def told(result: Result, policy: SandboxPolicy) -> str:
    """A result as text, cut to the policy's length, with a note where the program was ended."""
    text = "\n".join(
        part for data in (result.out, result.err) if (part := data.decode(errors="replace"))
    )
    if (left_out := len(text) - policy.max_text_chars) > 0:
        half = policy.max_text_chars // 2
        text = f"{text[:half]}\n[{left_out} characters left out]\n{text[-half:]}"
    if note := _NOTES.get(result.reason):
        text = f"{text}\n[{note}]".lstrip("\n")
    elif result.status and not result.err:
        text = f"{text}\n[exit status {result.status}]".lstrip("\n")
    return text


class Gate:
    """Basic authentication before everything, and a bound on connections."""

    def __init__(self, app: ASGIApp, credentials: str, max_connections: int) -> None:
        self._app = app
        self._expected = credentials.encode()
        self._max = max_connections
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http" or not self._may(Request(scope)):
            answer = PlainTextResponse(
                "credentials are needed", 401, {"WWW-Authenticate": 'Basic realm="vauban"'}
            )
            await answer(scope, receive, send)
            return
        if scope["path"].rstrip("/") != "/sse":
            await self._app(scope, receive, send)
            return
        if self._open >= self._max:
            await PlainTextResponse("too many sessions", 503)(scope, receive, send)
            return
        self._open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= 1

    def _may(self, request: Request) -> bool:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        try:
            told = base64.b64decode(given, validate=True)
        except (binascii.Error, ValueError):
            return False
        return kind.lower() == "basic" and hmac.compare_digest(told, self._expected)


def tool_app(
    sandbox: Sandbox, screen: Screen, audit: AuditLog, policy: Policy, credentials: str, host: str
) -> ASGIApp:
    """The ASGI application.

    :param screen: judges what the model would get.
    :param credentials: NAME:SECRET.
    """
    metrics = Metrics()
    tool = Tool(sandbox, screen, metrics, audit, policy.digest)
    server: MCPServer[None] = MCPServer(
        NAME,
        instructions="Runs a Python program in a sandbox of its own, without a network."
        " Only what it prints comes back; nothing is kept for the next call.",
        log_level="WARNING",
    )

    @server.tool(name=NAME, structured_output=False)
    async def python(code: str, ctx: LocalContext) -> str:
        """Run a Python 3 program and return what it prints."""
        return await tool.call(code, _connection(ctx), _session(ctx))

    @server.tool(name="cleanup_session", structured_output=False, meta={"include_in_prompt": False})
    async def cleanup_session(ctx: LocalContext) -> str:
        """End the session."""
        await tool.end(_connection(ctx))
        return "ended"

    async def show_metrics(_: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type="text/plain")

    longest = 2 * sandbox.policy.max_code_bytes + MAX_BODY_OVERHEAD_BYTES
    app: Starlette = server.sse_app(host=host, max_request_body_size=longest)
    app.add_route("/metrics", show_metrics)
    return Gate(app, credentials, sandbox.policy.max_sessions)


def _connection(context: LocalContext) -> str:
    """The connection's own id, which the server drew."""
    request = context.request_context.request
    return "" if request is None else request.query_params.get("session_id", "")


def _session(context: LocalContext) -> str:
    request = context.request_context.request
    return "" if request is None else request.headers.get("x-session-id", "")[:128]


def read_credentials(path: Path | None) -> str:
    """NAME:SECRET from a file, or new ones.

    :raises ConfigError: the file can't be read, or the secret is too short to be one.
    """
    if path is None:
        return f"vllm:{secrets.token_urlsafe(24)}"
    try:
        told = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path} can't be read") from None
    name, colon, secret = told.partition(":")
    if not name or not colon or len(secret) < MIN_SECRET_CHARS or len(told.split()) != 1:
        raise ConfigError(
            f"{path} must hold NAME:SECRET on one line, the secret of at least"
            f" {MIN_SECRET_CHARS} characters"
        )
    return told


def serve_tool(policy: Policy, credentials: str, host: str, port: int) -> None:
    """Serve until told to stop.

    :raises NoIsolation: the machine can't isolate, or the check found a way out.
    """
    import uvicorn
    from rich.console import Console

    from vauban.offline import OfflineScreen  # loads torch

    console = Console(stderr=True)
    with Sandbox(policy.sandbox) as sandbox:
        tier = sandbox.tier
        console.print(f"vauban: programs run in {tier.name}", highlight=False)
        for line in tier.passed_over:
            console.print(f"vauban: not {line}", highlight=False, markup=False, soft_wrap=True)
        if tier.name == VM_TCG:
            console.print("vauban: the processor is emulated: programs run some ten times slower")
        screen = OfflineScreen(policy)
        app = tool_app(sandbox, screen.read_one, AuditLog(policy.audit), policy, credentials, host)
        console.print(
            f"vauban: vllm serve MODEL --tool-server {credentials}@{host}:{port}",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
        uvicorn.run(
            app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=5,
            proxy_headers=False,
        )  # fmt: skip
