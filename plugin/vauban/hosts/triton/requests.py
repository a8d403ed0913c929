"""What a client asks, out of tensors and request parameters. Names are those of Triton's vLLM
backend; `messages` (a chat, as JSON) is vauban's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vauban.errors import MalformedRequest, RequestTooLarge
from vauban.mark import RESERVED_KEY
from vauban.protocol.shapes import Shape

PRINCIPAL: Final = "principal"
OPTIONS: Final = (
    "return_finish_reason", "return_num_input_tokens", "return_num_output_tokens",
)  # fmt: skip
OUTPUTS: Final = {
    "text_output": "",
    "finish_reason": "return_finish_reason",
    "num_input_tokens": "return_num_input_tokens",
    "num_output_tokens": "return_num_output_tokens",
}
"""The outputs, and the input that asks for each; the text is always given."""
UNSERVED: Final = ("return_logprobs", "return_cumulative_logprob")
"""Inputs of that backend that clients may send as long as they are false."""

Values = Mapping[str, NDArray[Any]]


class _Sampling(BaseModel):
    """Sampling parameters whose types matter here: those that are charged for (vLLM also takes
    "64" and 64.0), and the lists and maps, whose items Triton's vLLM backend gives to the engine
    as they are. Single values it converts, or fails that one request."""

    model_config = ConfigDict(strict=True)

    n: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], float] | None = None
    extra_args: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """One request.

    `data`: what `protocol.bodies.Body` reads. `repeat`: text that goes before the answer.
    `principal`: what the tensor of that name says. `options`: what else is asked for.
    """

    data: dict[str, Any]
    shape: Shape
    stream: bool
    repeat: str | None
    principal: str | None
    options: tuple[str, ...]

    @property
    def sampling(self) -> dict[str, Any]:
        found: dict[str, Any] = self.data["sampling_params"]
        return found


def read_request(values: Values, max_bytes: int) -> Asked:
    """
    :param values: input tensors by name, as Triton's Python backend gives them.
    :raises MalformedRequest: a tensor has the wrong shape or holds what it must not.
    :raises RequestTooLarge: more than `max_bytes` of text.
    """
    size = sum(len(item) for value in values.values() if value.dtype == object
               for item in value.flat if isinstance(item, bytes))  # fmt: skip
    if size > max_bytes:
        raise RequestTooLarge(f"the request has {size} bytes; at most {max_bytes} are served")
    text, chat = _text(values, "text_input"), _text(values, "messages")
    if (text is None) == (chat is None):
        raise MalformedRequest("give either text_input or messages", param="text_input")
    stream = _flag(values, "stream") or False
    bare = _flag(values, "exclude_input_in_output")
    if bare is False and (stream or text is None):
        raise MalformedRequest(
            "only a text_input that is not streamed can be repeated in the output",
            param="exclude_input_in_output",
        )
    for name in UNSERVED:
        if _flag(values, name):
            raise MalformedRequest("log-probabilities are not served here", param=name)
    sampling = _sampling(_text(values, "sampling_parameters"))
    if stream and sampling.get("n") not in (None, 1):
        # The LLM sends the parts of all texts at the same place, so they could not be told apart.
        raise MalformedRequest("a stream has one text: n must be 1", param="sampling_parameters")
    data: dict[str, Any] = {"sampling_params": sampling}
    if chat is None:
        data["prompt"] = text
    else:
        data["messages"] = _messages(chat)
    return Asked(
        data,
        Shape.COMPLETION if chat is None else Shape.CHAT,
        stream,
        None if stream or bare else text,
        _text(values, PRINCIPAL),
        tuple(name for name in OPTIONS if _flag(values, name)),
    )


def read_parameters(raw: str | None) -> dict[str, str]:
    """Request parameters by name in lower case: header names come as the client spells them.

    :raises MalformedRequest: one name twice, with different values.
    """
    found: dict[str, str] = {}
    pairs = json.loads(raw, object_pairs_hook=list) if raw else []
    for name, value in pairs:
        if found.setdefault(str(name).lower(), str(value)) != str(value):
            raise MalformedRequest("a request parameter or header is given twice", param=str(name))
    return found


def _one(values: Values, name: str) -> Any:
    value = values.get(name)
    if value is None:
        return None
    if value.size != 1:
        raise MalformedRequest(f"{name} must have exactly one element", param=name)
    return value.reshape(-1)[0]


def _text(values: Values, name: str) -> str | None:
    item = _one(values, name)
    if item is None:
        return None
    if isinstance(item, str):
        return item
    try:
        return bytes(item).decode("utf-8")
    except (TypeError, ValueError):
        raise MalformedRequest(f"{name} must be UTF-8 text", param=name) from None


def _flag(values: Values, name: str) -> bool | None:
    item = _one(values, name)
    if item is None:
        return None
    if not isinstance(item, (bool, np.bool_)):
        raise MalformedRequest(f"{name} must be true or false", param=name)
    return bool(item)


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise MalformedRequest(f"{name} is not valid JSON", param=name) from None


def _sampling(text: str | None) -> dict[str, Any]:
    """Sampling parameters without the key that only the guard may set."""
    found = _parsed(text, "sampling_parameters") if text and text.strip() else {}
    if not isinstance(found, dict):
        raise MalformedRequest("sampling_parameters must be a JSON object",
                               param="sampling_parameters")  # fmt: skip
    try:
        _Sampling.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise MalformedRequest(f"{first['loc'][0]}: {first['msg']}",
                               param="sampling_parameters") from None  # fmt: skip
    if extra := found.get("extra_args"):
        extra.pop(RESERVED_KEY, None)
    return found


def _messages(text: str) -> list[Any]:
    found = _parsed(text, "messages")
    if not isinstance(found, list) or not found or not all(isinstance(m, dict) for m in found):
        raise MalformedRequest("messages must be a JSON list of messages", param="messages")
    return found
