"""One request's tool calls: what it declares, what it brings back of an approval, what of the
answer is withheld."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from starlette.datastructures import Headers

from vauban.access.approval import CALLS
from vauban.hosts.vllm.answers import Answer
from vauban.hosts.vllm.held import released_answer
from vauban.hosts.vllm.rewrite import LastEditor
from vauban.hosts.vllm.settled import settled_answer
from vauban.hosts.vllm.tool_gate import HEADER, ToolGate, Turn
from vauban.hosts.vllm.withheld import AnthropicWithholder, ChoicesWithholder, judge_of
from vauban.hosts.vllm.withheld_responses import ResponsesWithholder
from vauban.protocol.calls import declared_tools, take_approval_items
from vauban.protocol.shapes import Shape
from vauban.types import Origin, Segment

_WITH_CALLS: Final = frozenset({Shape.CHAT, Shape.RESPONSES, Shape.ANTHROPIC})
_GENERATE: Final = _WITH_CALLS | {Shape.COMPLETION, Shape.TOKENS}


class ToolStage:
    """
    `form`: what kind of answer the request gets; a kept answer is given to no other.

    :param data: the request's body; the approval items of a Responses request are taken out.
    :raises MalformedRequest: an answer to an approval that names none.
    """

    def __init__(self, gate: ToolGate, data: dict[str, Any], shape: Shape, turn: Turn) -> None:
        self._gate = gate
        self._data = data
        self._shape = shape
        self._turn = turn
        self.form = f"{turn.route} stream" if data.get("stream") is True else turn.route
        self._answered = take_approval_items(data, shape)
        if gate.watches and shape in _WITH_CALLS:
            turn.tools = declared_tools(data)  # before anything in the body is rewritten
        turn.tainted = _brings_what_others_wrote(data)

    def read(self, segments: Iterable[Segment]) -> None:
        """Learn where the texts of the request come from."""
        strange = (Origin.TOOL, Origin.DOCUMENT)
        self._turn.tainted = self._turn.tainted or any(s.origin in strange for s in segments)

    async def settle(self, headers: Headers, model: str) -> Answer | None:
        """The answer to a request that brings an approval; None: the model is to answer.

        :raises RequestError: no approval of this caller's, used already, or void.
        """
        forms = [CALLS] if self._gate.enforces and self._shape in _WITH_CALLS else []
        if self._gate.holds_answers and self._shape in _GENERATE:
            forms.append(self.form)
        if not forms:
            return None
        approval_id = headers.get(HEADER)
        if self._answered is not None and not self._answered.approve:
            note = await self._gate.withdraw(self._turn, self._answered.approval_id)
            if self._answered.reason:
                note += f" {self._answered.reason}"
            self._data["input"].append({"role": "user", "content": note})
            return None
        if self._answered is not None:
            approval_id = self._answered.approval_id
        if approval_id is None:
            return None
        outcome = await self._gate.settle(self._turn, approval_id, forms)
        if outcome.answer:
            return released_answer(outcome.answer)
        stream = self._data.get("stream") is True
        return settled_answer(
            self._shape, outcome, self._turn.request_id, model=model, stream=stream
        )

    def editor(self, leaks: Callable[[Sequence[str]], bool]) -> LastEditor | None:
        """What takes withheld calls out of the answer. :param leaks: see `Turn`."""
        return withholder(self._gate, self._shape, replace(self._turn, leaks=leaks))


def _brings_what_others_wrote(data: Mapping[str, Any]) -> bool:
    """Whether fields that are not read as segments of a tool or document hold such texts.

    What was said before can't be looked up, so it counts.
    """
    if data.get("previous_response_id") is not None or data.get("previous_input_messages"):
        return True
    options = data.get("chat_template_kwargs")
    if isinstance(options, dict) and options.get("documents"):
        return True
    items = data.get("input")
    return isinstance(items, list) and any(
        isinstance(item, dict)
        and (str(item.get("type")).endswith("_output") or item.get("results") or item.get("output"))
        for item in items
    )


def withholder(gate: ToolGate, shape: Shape, turn: Turn) -> LastEditor | None:
    """What takes withheld calls out of an answer; None: it can't have calls, or all may pass."""
    if not gate.watches or shape not in _WITH_CALLS:
        return None
    judge = judge_of(gate, turn)
    if shape is Shape.RESPONSES:
        return ResponsesWithholder(judge)
    return AnthropicWithholder(judge) if shape is Shape.ANTHROPIC else ChoicesWithholder(judge)
