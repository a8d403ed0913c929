"""Keeps an answer that the policy holds until an operator releases it.

The client gets what came before the finding and is told of the approval. The model goes on, so
that the whole answer is there: it is read a second time by the same rules, with what held it let
through, and the bytes of that are kept. A release sends them as they are, once.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.datastructures import Headers

from vauban.errors import UnreadableAnswer
from vauban.hosts.vllm.answers import Answer
from vauban.hosts.vllm.output_channels import Key
from vauban.hosts.vllm.output_events import OutputEditor
from vauban.hosts.vllm.rewrite import Editor, Event, LastEditor, Rewriter
from vauban.hosts.vllm.tool_gate import Outcome, ToolGate, Turn

Message = MutableMapping[str, Any]

MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
"""An answer with more can't be kept, as the application writes it."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A released answer. `texts`: what it says, of each channel, for whoever decides."""

    content_type: str
    body: bytes
    texts: tuple[str, ...]

    def pack(self) -> bytes:
        body = self.body.decode("utf-8", "surrogateescape")
        return zlib.compress(json.dumps([self.content_type, body, self.texts]).encode())


def unpack(packed: bytes) -> Kept:
    content_type, body, texts = json.loads(zlib.decompress(packed))
    return Kept(content_type, body.encode("utf-8", "surrogateescape"), tuple(texts))


def released_answer(packed: bytes) -> Answer:
    kept = unpack(packed)
    return Answer(200, kept.body, kept.content_type)


class AnswerKeeper:
    """See `rewrite.Keeper`.

    :param editor: the one that may hold the answer.
    :param again: new editors for the second reading; of them the output editor, whose rules let
        what holds the answer pass.
    :param held_by: detectors that hold an answer.
    """

    def __init__(
        self, gate: ToolGate, turn: Turn, form: str, editor: OutputEditor,
        again: Callable[[], tuple[Sequence[Editor], OutputEditor, LastEditor | None]],
        held_by: Iterable[str],
    ) -> None:  # fmt: skip
        self._gate = gate
        self._turn = turn
        self._form = form
        self._editor = editor
        self._again = again
        self._held_by = frozenset(held_by)
        self._messages: list[Message] | None = []
        self._bytes = 0

    @property
    def holds(self) -> bool:
        return self._editor.held

    def note(self, message: Message) -> None:
        if self._messages is None:
            return
        self._messages.append(message)
        self._bytes += len(message.get("body", b""))
        if self._bytes > MAX_ANSWER_BYTES:
            self._messages = None

    async def end(self) -> list[Event]:
        return [*self._editor.closing(await self._keep())]

    async def replace(self, payload: Any) -> None:
        self._editor.notice(payload, await self._keep())

    async def _keep(self) -> Outcome:
        found = self._editor.findings
        packed = b""
        if self._messages is not None:
            editors, output, last = self._again()
            said: dict[Key, list[str]] = {}
            output.channels.said = said
            kept = await _reread(self._messages, editors, last)
            self._messages = None
            if kept is not None:
                found = output.findings
                texts = tuple("".join(pieces) for pieces in said.values())
                packed = await asyncio.to_thread(Kept(*kept, texts).pack)
        counts = {name: n for (name, _), n in sorted(found.items()) if name in self._held_by}
        return await self._gate.hold_answer(self._turn, self._form, packed, counts)


async def _reread(
    messages: Iterable[Message], editors: Sequence[Editor], last: LastEditor | None
) -> tuple[str, bytes] | None:
    """The answer as these editors let it out: its content type and bytes. None: it can't be
    read."""
    sent: list[Message] = []
    failed = False

    async def send(message: Message) -> None:
        sent.append(message)

    def fail(_: UnreadableAnswer) -> Answer:
        nonlocal failed
        failed = True
        return Answer(502, b"{}")

    rewriter = Rewriter(send, editors, fail, last=last)
    for message in messages:
        await rewriter.send(message)
        await asyncio.sleep(0)  # others are served meanwhile
    if failed or not sent:
        return None
    content_type = Headers(raw=list(sent[0].get("headers", []))).get("content-type", "")
    return content_type, b"".join(message.get("body", b"") for message in sent)
