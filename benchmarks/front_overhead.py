"""What the front half costs a request, and a streamed chunk, without the encoder.

The middleware around a five-line application, against the bare application, in one process and
taking turns request by request. No HTTP server, no vLLM.

python -m benchmarks.front_overhead [--quick] [--profile]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.results import Measure, Result, percentile
from rich.console import Console
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from transformers import AutoTokenizer

from vauban.hosts.vllm.channel import Report, ReportSender, announce_engine
from vauban.hosts.vllm.front import Front
from vauban.hosts.vllm.middleware import GuardMiddleware
from vauban.hosts.vllm.runtime import open_runtime
from vauban.hosts.vllm.settings import policy_from
from vauban.mark import RESERVED_KEY
from vauban.standin import make_standin, prose

CHUNKS = 1000
BODY_BYTES = 1000
REQUEST_TARGET_MS = 0.5
CHUNK_TARGET_US = 50.0
_HEADERS = [(b"content-type", b"application/json")]
_EVENT_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8")]
_ANSWER = json.dumps(
    {"id": "c", "object": "chat.completion", "choices": [
        {"index": 0, "message": {"role": "assistant", "content": prose(40)}}],
     "usage": {"prompt_tokens": 200, "completion_tokens": 60, "total_tokens": 260}}
).encode()  # fmt: skip
_CHUNK = b"data: " + json.dumps(
    {"id": "c", "object": "chat.completion.chunk", "model": "standin",
     "choices": [{"index": 0, "delta": {"content": " harbour"}, "finish_reason": None}]}
).encode() + b"\n\n"  # fmt: skip

VARIANTS: dict[str, dict[str, Any]] = {
    "off": {
        "injection": {"mode": "off"}, "extraction": {"mode": "off"},
        "encoder": {"place": "front"},
    },
    "off, no audit": {
        "injection": {"mode": "off"}, "extraction": {"mode": "off"},
        "encoder": {"place": "front"}, "audit": {"log": "off"},
    },
    "sealed": {"encoder": {"place": "engine"}, "injection": {"block_at": 1.0}},
}  # fmt: skip
"""`off`: reads, cleans, frames, audits, nothing to screen. `sealed`: also cuts windows, seals a
mark, and takes a verdict that an engine stand-in sends at once over the real socket."""


async def bare(_scope: Scope, receive: Receive, send: Send) -> None:
    """The application: reads the body, answers with a canned completion or stream."""
    body = json.loads((await receive())["body"])
    headers = list(_EVENT_HEADERS if body.get("stream") else _HEADERS)
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if body.get("stream"):
        for _ in range(CHUNKS):
            await send({"type": "http.response.body", "body": _CHUNK, "more_body": True})
    await send({"type": "http.response.body", "body": b"" if body.get("stream") else _ANSWER})


class EngineStandIn:
    """The application behind an engine that finds every mark harmless at once.

    `spent_s`: its own time so far, which is no part of the front's.
    """

    def __init__(self) -> None:
        self.spent_s = 0.0
        runtime = open_runtime()
        self._sealer = runtime.sealer
        self._sender = ReportSender(runtime.sealer, runtime.directory)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        message = await receive()
        sealed = json.loads(message["body"]).get("vllm_xargs", {}).get(RESERVED_KEY)
        if sealed is not None:
            mark = self._sealer.open_mark(sealed)
            assert mark is not None
            if mark.reply:
                assert mark.windows.tokens
                self._sender.send(mark.reply, [Report(mark.nonce, 0.0, None, 1, 0.0, 0.0)])
        self.spent_s += time.perf_counter() - started

        async def again() -> Message:
            return message

        await bare(scope, again, send)


def chat_body(*, stream: bool) -> bytes:
    """A chat request of `BODY_BYTES`."""
    body: dict[str, Any] = {
        "model": "standin", "max_tokens": 64, "temperature": 0.7, "stream": stream,
        "messages": [{"role": "user", "content": ""}],
    }  # fmt: skip
    room = BODY_BYTES - len(json.dumps(body))
    body["messages"][0]["content"] = prose(200)[:room]
    return json.dumps(body).encode()


@contextmanager
def opened(flags: dict[str, Any], model: Path, log: Path) -> Iterator[Front]:
    """The front as a server opens it, with the stand-in's tokenizer."""
    flags = {"audit": {"log": str(log)}, **flags}
    config = {"vauban": flags}
    announce_engine(open_runtime().directory, policy_from(config).policy.digest)
    tokenizer = AutoTokenizer.from_pretrained(model)
    front = Front()
    state = SimpleNamespace(
        args=SimpleNamespace(additional_config=config, host="127.0.0.1", uds=None),
        engine_client=SimpleNamespace(
            renderer=SimpleNamespace(get_tokenizer=lambda: tokenizer),
            model_config=SimpleNamespace(max_model_len=8_192),
        ),
        vllm_config=SimpleNamespace(scheduler_config=SimpleNamespace(policy="fcfs")),
        online_renderer=SimpleNamespace(chat_template=None),
        openai_serving_models=SimpleNamespace(model_name=lambda: "standin"),
    )
    front.open(state)  # type: ignore[arg-type]
    try:
        yield front
    finally:
        front.close()


async def one_request(app: ASGIApp, body: bytes, inner: EngineStandIn) -> float:
    """Seconds for one request, without those that the stand-in for the engine took."""
    scope: Scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "root_path": "",
        "headers": [
            (b"host", b"127.0.0.1"), (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()), (b"authorization", b"Bearer none"),
        ],
        "client": ("127.0.0.1", 50_000), "query_string": b"",
    }  # fmt: skip
    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    inner.spent_s = 0.0
    started = time.perf_counter()
    await app(scope, receive, send)
    spent = time.perf_counter() - started - inner.spent_s
    assert statuses == [200]
    return spent


async def take_turns(front: Front, body: bytes, count: int) -> dict[str, list[float]]:
    """Seconds per request, bare and guarded; they take turns, so drift hits both alike."""
    inner = EngineStandIn()
    apps: dict[str, ASGIApp] = {"bare": inner, "guarded": GuardMiddleware(inner, front)}
    seconds: dict[str, list[float]] = {name: [] for name in apps}
    for turn in range(count + count // 10):
        for name, app in apps.items():
            spent = await one_request(app, body, inner)
            if turn >= count // 10:
                seconds[name].append(spent)
    return seconds


async def measure(*, repeats: int, requests: int, streams: int) -> Result:
    result = Result(
        "front_overhead",
        {"body_bytes": BODY_BYTES, "chunks": CHUNKS, "requests": requests, "streams": streams,
         "repeats": repeats, "variants": VARIANTS},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        model = make_standin(Path(scratch) / "model")
        for variant, flags in VARIANTS.items():
            with opened(flags, model, Path(scratch) / "audit.jsonl") as front:
                chats = [
                    await take_turns(front, chat_body(stream=False), requests)
                    for _ in range(repeats)
                ]
                flows = [
                    await take_turns(front, chat_body(stream=True), streams) for _ in range(repeats)
                ]
            result.measures += _measures(variant, chats, flows)
    return result


def _measures(
    variant: str, chats: list[dict[str, list[float]]], flows: list[dict[str, list[float]]]
) -> Iterator[Measure]:
    for share in (0.5, 0.95):
        added = [
            1e3 * (percentile(x["guarded"], share) - percentile(x["bare"], share)) for x in chats
        ]
        base = statistics.median(1e3 * percentile(x["bare"], share) for x in chats)
        yield Measure(
            f"request added p{round(100 * share)} ({variant})", "ms", tuple(added), baseline=base,
            at_most=REQUEST_TARGET_MS if share == 0.5 else None,
        )  # fmt: skip
    # A request's fixed cost comes once, a chunk's CHUNKS times.
    fixed = [1e3 * percentile(x["guarded"], 0.5) for x in chats]
    per_chunk = [
        1e6 * (percentile(x["guarded"], 0.5) - percentile(x["bare"], 0.5) - f / 1e3) / CHUNKS
        for x, f in zip(flows, fixed, strict=True)
    ]
    base = statistics.median(1e6 * percentile(x["bare"], 0.5) / CHUNKS for x in flows)
    yield Measure(
        f"chunk added p50 ({variant})", "us", tuple(per_chunk), baseline=base,
        at_most=CHUNK_TARGET_US,
    )  # fmt: skip


async def profile(console: Console, requests: int = 2000) -> None:
    """Where the time of a guarded request goes, by own time and by cumulative time."""
    with tempfile.TemporaryDirectory() as scratch:
        model = make_standin(Path(scratch) / "model")
        for variant, flags in VARIANTS.items():
            with opened(flags, model, Path(scratch) / "audit.jsonl") as front:
                await _profiled(console, variant, front, requests)


async def _profiled(console: Console, variant: str, front: Front, requests: int) -> None:
    body = chat_body(stream=False)
    inner = EngineStandIn()
    app = GuardMiddleware(inner, front)
    profiler = cProfile.Profile()
    for _ in range(100):
        await one_request(app, body, inner)
    profiler.enable()
    for _ in range(requests):
        await one_request(app, body, inner)
    profiler.disable()
    console.rule(variant)
    pstats.Stats(profiler, stream=console.file).sort_stats("cumulative").print_stats(45)


def main(argv: list[str] | None = None) -> Result | None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args(argv)
    console = Console(width=130)
    if arguments.profile:
        asyncio.run(profile(console))
        return None
    requests, streams = (300, 10) if arguments.quick else (2000, 50)
    repeats = 3 if arguments.quick else 7
    result = asyncio.run(measure(repeats=repeats, requests=requests, streams=streams))
    result.show(console)
    result.write(suffix="-quick" if arguments.quick else "")
    return result


if __name__ == "__main__":
    main()
