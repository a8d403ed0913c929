"""One request's answer: what is taken out of it, withheld, or kept until somebody releases it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from starlette.types import Send

from vauban.errors import UnreadableAnswer
from vauban.hosts.vllm.answers import Answer
from vauban.hosts.vllm.front import Front
from vauban.hosts.vllm.held import AnswerKeeper
from vauban.hosts.vllm.output_events import OutputEditor, output_editor
from vauban.hosts.vllm.rewrite import Editor, LastEditor, Rewriter
from vauban.hosts.vllm.tool_gate import Turn
from vauban.hosts.vllm.tool_stage import ToolStage
from vauban.protocol.shapes import Shape
from vauban.text.sanitize import Sanitizer
from vauban.text.sequel import leaks_jointly


@dataclass(slots=True)
class OutputStage:
    """`editors` come before the sanitiser. Without `read` the answer's text passes unread."""

    front: Front
    shape: Shape
    turn: Turn
    tools: ToolStage
    editors: list[Editor] = field(default_factory=list)
    _output: OutputEditor | None = None
    _keeper: AnswerKeeper | None = None
    _last: LastEditor | None = None

    def read(self, rules: Sanitizer) -> None:
        """Have the answer sanitised, and its tool calls judged."""
        output = self._output = output_editor(rules, self.shape)
        self._last = self.tools.editor(partial(leaks_jointly, rules))
        held_by = self.front.policy.output.held_by
        if not held_by:
            return

        def again() -> tuple[list[Editor], OutputEditor, LastEditor | None]:
            others = rules.with_actions(hold="monitor")
            lifted, last = output_editor(others, self.shape), partial(leaks_jointly, others)
            return [*self.editors, lifted], lifted, self.tools.editor(last)

        self._keeper = AnswerKeeper(
            self.front.tool_gate, self.turn, self.tools.form, output, again, held_by
        )

    def rewriter(self, send: Send, failed: Callable[[UnreadableAnswer], Answer]) -> Rewriter:
        editors = [*self.editors, *([self._output] if self._output is not None else [])]
        return Rewriter(send, editors, failed, last=self._last, keeper=self._keeper)

    def record(self) -> None:
        """Count and audit what was found."""
        if self._output is not None:
            self.front.record_output(
                self._output.findings,
                request_id=self.turn.request_id,
                principal=self.turn.principal,
                route=self.turn.route,
                policy=self.front.digest,
            )
