"""The sandwich at the level of each protocol: where its system text and its reminder are put."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vauban.errors import MalformedRequest
from vauban.policy import SandwichPolicy
from vauban.protocol.bodies import Body, Leaf
from vauban.protocol.shapes import Shape
from vauban.text.sandwich import Framed, Sandwich
from vauban.text.template_probe import Render, TemplateCapabilities, probe_template
from vauban.types import Origin, Segment

_SYSTEM_ROLES = ("system", "developer")
_NOTHING_SAID = Segment(".", Origin.USER)


class Framer:
    """Frames request bodies.

    :param late: the sandwich for chat templates that take a late system message, as probed.
    :param inline: the same with the reminder inside the last untrusted text, for protocols and
        conversations where no message may follow it.
    :param continued: for a turn whose earlier ones the server puts before it. A system message
        stands in the middle there; where the template refuses that, all goes into the texts.
    """

    def __init__(self, late: Sandwich, inline: Sandwich, continued: Sandwich) -> None:
        self._late = late
        self._inline = inline
        self._continued = continued

    def frame(self, body: Body, shape: Shape) -> int:
        """Frame the untrusted turns of a body in place; returns the tokens added, an upper bound.

        To be called after `Body.put`: the frame goes around cleaned text. Where all turns are
        said to be the model's or the system's, those are framed: a role must not take it away.
        """
        data = body.data
        if shape is Shape.COMPLETION:
            return sum(self._completion(leaf) for leaf in body.leaves if leaf.frame)
        if shape is Shape.CHAT:
            return sum(
                self._chat(messages, leaves, bool(data.get("continue_final_message")))
                for messages, leaves in _conversations(body)
            )
        if shape is Shape.RESPONSES:
            return self._responses(body)
        if shape is Shape.ANTHROPIC:
            return self._anthropic(body)
        return 0

    def _completion(self, leaf: Leaf) -> int:
        text, added = self._inline.completion(leaf.text, leaf.origin)
        leaf.container[leaf.key] = text
        return added

    def _chat(self, messages: list[Any], turns: list[Leaf], continued: bool) -> int:
        last = messages[-1] if messages else None
        open_end = isinstance(last, dict) and last.get("role") != "assistant" and not continued
        sandwich = self._late if open_end else self._inline
        first = messages[0] if messages and isinstance(messages[0], dict) else {}
        has_system = first.get("role") in _SYSTEM_ROLES
        framed = _frame(sandwich, turns, has_system=has_system)
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
        framed = _frame(self._inline, body.leaves, has_system=bool(present))
        if framed.system is not None:
            body.data["system"] = _merged(framed.system, present)
        return framed.added_tokens

    def _responses(self, body: Body) -> int:
        """The system text goes into `input`: vLLM's answer repeats `instructions` to the client."""
        data = body.data
        has_system = bool(data.get("instructions"))
        sandwich = self._inline if data.get("previous_response_id") is None else self._continued
        framed = _frame(sandwich, body.leaves, has_system=has_system)
        if framed.system is not None:
            turns = data.get("input")
            if isinstance(turns, str):
                turns = [{"role": "user", "content": turns}]
            content = _merged(framed.system, data.pop("instructions", None))
            others = turns if isinstance(turns, list) else []
            data["input"] = [{"role": "system", "content": content}, *others]
        return framed.added_tokens


def make_framer(
    policy: SandwichPolicy, render: Render | None, count_tokens: Callable[[str], int]
) -> Framer:
    """The framer for a served model.

    :param render: its chat template, see `probe_template`; None where it has none.
    :param count_tokens: tokens of a text under its tokenizer, none added.
    """
    found = probe_template(render, count_tokens) if render else TemplateCapabilities()
    inline = TemplateCapabilities(
        system=found.system, system_overhead_tokens=found.system_overhead_tokens
    )
    continued = inline if found.late_system else TemplateCapabilities()
    return Framer(*(Sandwich(policy, taken, count_tokens) for taken in (found, inline, continued)))


def _frame(sandwich: Sandwich, turns: Sequence[Leaf], *, has_system: bool) -> Framed:
    """Frame what a user or tool said; without any of that, what is said to be others' words."""
    untrusted = [x for x in turns if not x.origin.trusted and x.text and x.container is not None]
    leaves = [x for x in untrusted if x.frame] or [x for x in untrusted if x.own_words]
    if not leaves:  # only media: the operator's text still has to stand before it
        return sandwich.chat([_NOTHING_SAID], has_system=has_system)
    framed = sandwich.chat([Segment(x.text, x.origin) for x in leaves], has_system=has_system)
    for leaf, text in zip(leaves, framed.texts, strict=True):
        leaf.container[leaf.key] = text
    return framed


def _conversations(body: Body) -> list[tuple[list[Any], list[Leaf]]]:
    """The conversations of a chat body and their text: one, or many on the batch route."""
    messages = body.data.get("messages")
    if not isinstance(messages, list):
        return []
    if not messages or not all(isinstance(item, list) for item in messages):
        return [(messages, body.leaves)]
    found: list[tuple[list[Any], list[Leaf]]] = [(item, []) for item in messages]
    for leaf in body.leaves:
        field, _, index = leaf.part_of.partition(".")
        if field == "messages" and index.isdecimal():
            found[int(index)][1].append(leaf)
    return found


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
    raise MalformedRequest("the content of a message must be text or a list of parts")
