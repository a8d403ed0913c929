"""The sandwich at the level of each protocol: where its system text and its reminder are put."""

from __future__ import annotations

from typing import Any

from vauban.hosts.vllm.bodies import Body, Leaf
from vauban.hosts.vllm.routes import Shape
from vauban.text.sandwich import Framed, Sandwich
from vauban.types import Segment

_SYSTEM_ROLES = ("system", "developer")


class Framer:
    """Frames request bodies.

    :param late: the sandwich for chat templates that take a late system message, as probed.
    :param inline: the same with the reminder inside the last untrusted text, for protocols and
        conversations where no message may follow it.
    """

    def __init__(self, late: Sandwich, inline: Sandwich) -> None:
        self._late = late
        self._inline = inline

    def frame(self, body: Body, shape: Shape) -> int:
        """Frame the untrusted turns of a body in place; returns the tokens added, an upper bound.

        To be called after `Body.put`: the frame goes around cleaned text.
        """
        data = body.data
        if shape is Shape.COMPLETION:
            return sum(self._completion(leaf) for leaf in body.leaves if leaf.frame)
        if shape is Shape.CHAT:
            return sum(self._chat(body, messages) for messages in _conversations(data))
        if shape is Shape.RESPONSES:
            return self._responses(body)
        if shape is Shape.ANTHROPIC:
            return self._anthropic(body)
        return 0

    def _completion(self, leaf: Leaf) -> int:
        text, added = self._inline.completion(leaf.text, leaf.origin)
        leaf.container[leaf.key] = text
        return added

    def _chat(self, body: Body, messages: list[Any]) -> int:
        leaves = _leaves_in(body, messages)
        last = messages[-1] if messages else None
        open_end = isinstance(last, dict) and last.get("role") != "assistant"
        sandwich = self._late if open_end else self._inline
        first = messages[0] if messages and isinstance(messages[0], dict) else {}
        has_system = first.get("role") in _SYSTEM_ROLES
        framed = sandwich.chat([Segment(x.text, x.origin) for x in leaves], has_system=has_system)
        _write(leaves, framed.texts)
        if framed.system is not None:
            if has_system:
                first["content"] = _merged(framed.system, first.get("content"))
            else:
                messages.insert(0, {"role": "system", "content": framed.system})
        if framed.reminder is not None:
            messages.append({"role": "system", "content": framed.reminder})
        return framed.added_tokens

    def _anthropic(self, body: Body) -> int:
        present = body.data.get("system")
        framed = self._frame_inline(body, has_system=bool(present))
        if framed.system is not None:
            body.data["system"] = _merged(framed.system, present)
        return framed.added_tokens

    def _responses(self, body: Body) -> int:
        """The system text goes into `input`: vLLM's answer repeats `instructions` to the client.

        A request that continues a stored response has the system text in its history.
        """
        data = body.data
        framed = self._frame_inline(body, has_system=bool(data.get("instructions")))
        if framed.system is not None and data.get("previous_response_id") is None:
            turns = data.get("input")
            if isinstance(turns, str):
                turns = [{"role": "user", "content": turns}]
            content = _merged(framed.system, data.pop("instructions", None))
            data["input"] = [{"role": "system", "content": content}, *(turns or [])]
        return framed.added_tokens

    def _frame_inline(self, body: Body, *, has_system: bool) -> Framed:
        leaves = [leaf for leaf in body.leaves if leaf.frame]
        framed = self._inline.chat(
            [Segment(leaf.text, leaf.origin) for leaf in leaves], has_system=has_system
        )
        _write(leaves, framed.texts)
        return framed


def _conversations(data: dict[str, Any]) -> list[list[Any]]:
    """The conversations of a chat body: one, or many on the batch route."""
    messages = data.get("messages")
    if not isinstance(messages, list):
        return []
    if messages and all(isinstance(item, list) for item in messages):
        return messages
    return [messages]


def _leaves_in(body: Body, messages: list[Any]) -> list[Leaf]:
    """The leaves of one conversation that may be framed."""
    holders: set[int] = set()
    waiting: list[Any] = list(messages)
    while waiting:
        item = waiting.pop()
        if isinstance(item, (dict, list)):
            holders.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)
    return [leaf for leaf in body.leaves if leaf.frame and id(leaf.container) in holders]


def _write(leaves: list[Leaf], texts: tuple[str, ...]) -> None:
    for leaf, text in zip(leaves, texts, strict=True):
        leaf.container[leaf.key] = text


def _merged(system: str, present: Any) -> Any:
    """The operator's text before what a client sent as its system text.

    It also stands before the operator's own system message: one order for both keeps the prefix
    that requests share as long as it can be.
    """
    if not present:
        return system
    if isinstance(present, str):
        return f"{system}\n{present}"
    if isinstance(present, list):
        return [{"type": "text", "text": system}, *present]
    return present
