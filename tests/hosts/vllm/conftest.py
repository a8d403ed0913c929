"""A guarded server without vLLM: a real front, an inner application of five lines, and an engine
half that answers marks with what the fake encoder says."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from vauban.access.ledger import Ledger
from vauban.detectors.encoder import Encoded
from vauban.guard import Guard, encode_each
from vauban.hosts.vllm.channel import Report, ReportReceiver, ReportSender
from vauban.hosts.vllm.front import Front
from vauban.hosts.vllm.middleware import GuardMiddleware
from vauban.hosts.vllm.stored import ResponseIds
from vauban.mark import RESERVED_KEY, Sealer
from vauban.protocol.framing import Framer
from vauban.protocol.owner import Owners
from vauban.screening import ScreenQueue
from vauban.telemetry import Metrics
from vauban.text.sandwich import Sandwich
from vauban.text.template_probe import TemplateCapabilities
from vauban.types import Reason

SECRET = b"0123456789abcdef" * 2
WAIT_S = 20
App = Callable[..., Awaitable[None]]


class LetterTokenizer:
    """Token ids are code points, so tests can write text as ids."""

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(chr(number) for number in ids)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]


def _tokens(text: str) -> int:
    return len(text) // 4


@dataclass
class Response:
    """What went to the client, message by message."""

    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def status(self) -> int:
        starts = [m for m in self.messages if m["type"] == "http.response.start"]
        assert len(starts) == 1, f"{len(starts)} answers were started"
        return int(starts[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        raw = self.messages[0]["headers"]
        return {name.decode(): value.decode() for name, value in raw}

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def complete(self) -> bool:
        return bool(self.messages) and not self.messages[-1].get("more_body", False)


class Engine:
    """The inner application: finds the mark, screens, answers in `chunks` pieces.

    Tests change what it does by its attributes.
    """

    def __init__(self, sender: ReportSender, sealer: Sealer, encode: Callable[..., Any]) -> None:
        self._sender, self._sealer, self._encode = sender, sealer, encode
        self.bodies: list[dict[str, Any]] = []
        self.scopes: list[dict[str, Any]] = []
        self.marks: list[Any] = []
        self.cancelled = 0
        self.report = True
        self.report_after: asyncio.Event | None = None
        self.answer: App = self.say
        self.answered = b'{"said": "the model\'s words"}'

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        body = await self.read(receive)
        self.bodies.append(json.loads(body) if body else {})
        if self.report:
            self.screen(self.bodies[-1])
        try:
            await self.answer(scope, receive, send)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def screen(self, body: dict[str, Any]) -> None:
        holder = body.get("vllm_xargs") or body.get("sampling_params", {}).get("extra_args", {})
        mark = self._sealer.open_mark(holder.get(RESERVED_KEY))
        self.marks.append(mark)
        if mark is None or not mark.reply:
            return
        (outcome,) = encode_each(self._encode, [mark.windows])
        failure = outcome if isinstance(outcome, Reason) else None
        score = outcome.score if isinstance(outcome, Encoded) else None
        self._sender.send(mark.reply, [Report(mark.nonce, score, failure, 1, 0.1, 0.2)])

    @staticmethod
    async def read(receive: Any) -> bytes:
        body, more = b"", True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return body

    async def say(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.answered, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Server:
    """The middleware around an `Engine`, and a way to send requests to it."""

    def __init__(self, front: Front, engine: Engine) -> None:
        self.front, self.engine = front, engine
        self.app = GuardMiddleware(engine, front=front)

    async def post(
        self,
        path: str,
        body: Any = None,
        *,
        method: str = "POST",
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
        chunks: list[bytes] | None = None,
        then: list[dict[str, Any]] | None = None,
        leave: asyncio.Event | None = None,
    ) -> Response:
        """:param chunks: the body in pieces. :param leave: when set, the client disconnects."""
        if raw is None:
            raw = b"" if body is None else json.dumps(body).encode()
        pieces = chunks if chunks is not None else [raw]
        last = len(pieces) - 1
        messages = [
            {"type": "http.request", "body": piece, "more_body": n < last}
            for n, piece in enumerate(pieces)
        ]
        if then is not None:
            messages = then
        response = Response()

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop(0)
            await (leave.wait() if leave is not None else asyncio.sleep(WAIT_S))
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            response.messages.append(message)

        given = {"content-type": "application/json", **(headers or {})}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(n.lower().encode(), v.encode()) for n, v in given.items()],
            "client": ("127.0.0.1", 5),
        }
        await asyncio.wait_for(self.app(scope, receive, send), WAIT_S)
        return response


@pytest.fixture(scope="session")
def guards() -> dict[str, Guard]:
    return {}


@pytest.fixture
def sealer() -> Sealer:
    return Sealer(SECRET)


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A private directory with a path short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="v-") as made:
        yield Path(made)


@pytest.fixture
def probed() -> TemplateCapabilities:
    return TemplateCapabilities(system=True, late_system=True)


@pytest.fixture
async def make_server(
    tmp_path: Path,
    runtime_dir: Path,
    fake_encoder: Any,
    sealer: Sealer,
    probed: TemplateCapabilities,
    guards: dict[str, Guard],
) -> AsyncIterator[Callable[..., Server]]:
    """make_server(place="engine" | "front", injection={...}, ...) -> Server."""
    opened: list[ReportReceiver] = []
    queues: list[ScreenQueue] = []
    ledgers: list[Ledger] = []

    def make(*, place: str = "engine", framed: bool = False, **sections: Any) -> Server:
        sections["injection"] = {"block_at": 0.9, "flag_at": 0.5} | sections.get("injection", {})
        sections.setdefault("audit", {"log": str(tmp_path / "audit.log")})
        sections.setdefault("tools", {"store": "memory"})
        sections.setdefault("sandwich", {} if framed else {"mode": "off"})
        front = Front()
        front.metrics = Metrics(CollectorRegistry())
        front.configure(SimpleNamespace(additional_config={"vauban": sections}, host="127.0.0.1"))
        tokenizer = LetterTokenizer()
        front.tokenizer = tokenizer
        key = front.policy.model_dump_json(exclude={"audit", "identity", "tools"})
        if key not in guards:  # reading a tokenizer takes its time
            guards[key] = Guard(front.policy, ["<|im_start|>", "<|im_end|>"])
        front.guard = guards[key]
        inline = TemplateCapabilities(system=True)
        front.framer = Framer(
            *(Sandwich(front.policy.sandwich, found, _tokens) for found in (probed, inline, inline))
        )
        front.default_model = "standin"
        front.max_guard_tokens = 100_000
        front.place = place
        front._sealer = sealer
        front.response_ids = ResponseIds(sealer)
        front.owners = Owners(sealer, front.policy.output)
        front.open_tool_gate(sealer, given=True)
        front._receiver = ReportReceiver(sealer, runtime_dir)
        front._receiver.open()
        front.ledger.open()
        ledgers.append(front.ledger)
        opened.append(front._receiver)
        if place == "front":
            front._queue = ScreenQueue(fake_encoder.encode, 1_000_000)
            queues.append(front._queue)
        return Server(front, Engine(ReportSender(sealer, runtime_dir), sealer, fake_encoder.encode))

    yield make
    for ledger in ledgers:
        ledger.close()
    for receiver in opened:
        receiver.close()
    for queue in queues:
        queue.close()


@pytest.fixture
async def server(make_server: Callable[..., Server]) -> Server:
    return make_server()
