"""How many tokens an answer used, read from the bytes that pass."""

from __future__ import annotations

import re

_TAIL_BYTES = 8_192
# A quote inside a JSON string is escaped, so text that a model writes can't match.
_TOTAL = re.compile(rb'(?<!\\)"total_tokens"\s*:\s*(\d{1,12})')
_INPUT = re.compile(rb'(?<!\\)"input_tokens"\s*:\s*(\d{1,12})')
_OUTPUT = re.compile(rb'(?<!\\)"output_tokens"\s*:\s*(\d{1,12})')
_EVENT = b"data:"


class TokenCounter:
    """Prompt and completion tokens of one answer.

    From the `usage` that the answer ends with; a stream without one counts a token for each
    event, and `prompt_tokens`, an estimate, for the prompt.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._events = 0

    def feed(self, chunk: bytes) -> None:
        self._events += chunk.count(_EVENT)
        self._tail = (self._tail + chunk)[-_TAIL_BYTES:]

    def total(self, prompt_tokens: int = 0) -> int:
        if totals := _TOTAL.findall(self._tail):
            return int(totals[-1])
        inputs, outputs = _INPUT.findall(self._tail), _OUTPUT.findall(self._tail)
        if inputs or outputs:
            return int((inputs or [b"0"])[-1]) + int((outputs or [b"0"])[-1])
        return prompt_tokens + self._events
