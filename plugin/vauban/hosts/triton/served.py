"""The served model's tokenizer and chat template, outside the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vauban.errors import ConfigError, MalformedRequest
from vauban.text.template_probe import REFUSALS


class ServedModel:
    """
    :param directory: a Hugging Face model directory; only tokenizer and configuration are read.
    :param max_model_len: context in tokens; 0 = as the configuration says.
    :raises ConfigError: there is no usable tokenizer, or no context.
    """

    def __init__(self, directory: Path, max_model_len: int) -> None:
        try:
            self.tokenizer: Any = _load(directory)
        except (OSError, ValueError) as error:
            raise ConfigError(f"MODEL: no tokenizer in {directory}: {error}") from None
        self.max_model_len = max_model_len or _context(directory)
        self.has_template = bool(getattr(self.tokenizer, "chat_template", None))
        # The engine puts this in front of every prompt by itself.
        adds = self.tokenizer.encode("", add_special_tokens=True)
        bos = getattr(self.tokenizer, "bos_token", None)
        begins = bos and adds[:1] == [self.tokenizer.bos_token_id]
        self._doubled = str(bos) if begins else ""

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids))

    def count(self, text: str) -> int:
        return len(self.encode(text))

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Messages as the template prints them, with the cue for an answer."""
        return str(
            self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        )

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt of a chat.

        :raises MalformedRequest: the model has no template, or it refuses these messages.
        """
        if not self.has_template:
            raise MalformedRequest("the model has no chat template; use text_input")
        try:
            return self.render(messages).removeprefix(self._doubled)
        except REFUSALS:
            raise MalformedRequest("the model's chat template refuses these messages",
                                   param="messages") from None  # fmt: skip


def _load(directory: Path) -> Any:
    if (directory / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    from transformers import AutoTokenizer  # loads torch and takes six times as long

    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


def _context(directory: Path) -> int:
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    found = config.get("max_position_embeddings")
    if not isinstance(found, int) or found < 1:
        raise ConfigError("MAX_MODEL_LEN must be set: the model's configuration does not say it")
    return found
