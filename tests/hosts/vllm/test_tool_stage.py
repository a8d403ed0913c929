"""Fields that bring what others wrote, and are not read as a tool's or a document's text."""

from __future__ import annotations

from typing import Any

import pytest

from vauban.hosts.vllm.tool_gate import Turn
from vauban.hosts.vllm.tool_stage import ToolStage
from vauban.protocol.shapes import Shape


class _Gate:
    watches = True


@pytest.mark.parametrize(
    ("more", "tainted"),
    [
        ({}, False),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"input": [{"role": "user", "content": "Hello"}]}, False),
        ({"previous_response_id": "resp_1"}, True),
        ({"previous_input_messages": [{"role": "tool", "content": "x"}]}, True),
        ({"chat_template_kwargs": {"documents": [{"text": "x"}]}}, True),
        ({"input": [{"type": "shell_call_output", "output": "x"}]}, True),
        ({"input": [{"type": "file_search_call", "results": [{"text": "x"}]}]}, True),
    ],
)
def test_what_others_wrote_taints(more: dict[str, Any], tainted: bool) -> None:
    turn = Turn("key:a", "request", "/v1/responses")
    ToolStage(_Gate(), {"model": "m", **more}, Shape.RESPONSES, turn)  # type: ignore[arg-type]
    assert turn.tainted is tainted
