"""The scripted target as a model of vLLM: a Llama whose next token comes from `vauban.scripted`.

Registered out of tree (`ModelRegistry`), as vLLM's documentation describes. The Llama's own
forward pass runs as ever; what it would have said is replaced. The context of each request is
kept as attention layers keep it, by the slots of the KV cache, so that batching, chunked prefill,
prefix caching and preemption need no care.

Covers: chat with the stand-in's template. Does not cover: plain completions (they end at once),
CUDA graphs and compiled runs (start with `--enforce-eager`), more than one KV cache group.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from vllm.forward_context import get_forward_context
from vllm.model_executor.models.llama import LlamaForCausalLM

from vauban.scripted import answer_to

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_TURN_START = "<|im_start|>"
_ANSWER_START = "<|im_start|>assistant\n"
_END = "<|im_end|>"
_MAX_ANSWERS = 512
_DIGIT = 64  # exact in every dtype, bfloat16 included
_SURE = 100.0


class Speaker:
    """Says the next token of an answer, given all tokens of a request so far."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        (self._turn,), (self.end,) = self._ids(_TURN_START), self._ids(_END)
        self._opening = self._ids(_ANSWER_START)
        self._answers: OrderedDict[tuple[int, ...], list[int]] = OrderedDict()

    def next(self, tokens: Sequence[int]) -> int:
        """The token after these; the end of the turn where nothing follows."""
        start = _last(tokens, self._turn)
        length = start + len(self._opening)
        if start < 0 or list(tokens[start:length]) != self._opening:
            return self.end
        answer, spoken = self._answer(tuple(tokens[:length])), tokens[length:]
        said = len(spoken)
        if said >= len(answer) or list(spoken) != answer[:said]:
            return self.end
        return answer[said]

    def _answer(self, prompt: tuple[int, ...]) -> list[int]:
        found = self._answers.get(prompt)
        if found is None:
            text = answer_to(self._tokenizer.decode(list(prompt), skip_special_tokens=False))
            # A turn inside an answer would end the prompt for the next token.
            found = [i for i in self._ids(text) if i not in (self._turn, self.end)]
            self._answers[prompt] = found
            if len(self._answers) > _MAX_ANSWERS:
                self._answers.popitem(last=False)
        return found

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


class ScriptedForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """No language model: see `vauban.scripted`."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **more: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **more)
        self._speaker = Speaker(Path(vllm_config.model_config.model))
        self._block = int(vllm_config.cache_config.block_size)
        self._tokens = torch.zeros(0, dtype=torch.int32)  # by slot of the KV cache
        self._vocabulary = int(vllm_config.model_config.get_vocab_size())

    def forward(self, input_ids: torch.Tensor, *args: Any, **more: Any) -> Any:
        hidden = super().forward(input_ids, *args, **more)
        hidden = hidden.clone()
        hidden[:, :2] = 0
        metadata = get_forward_context().attn_metadata
        if isinstance(metadata, dict) and metadata:
            self._speak(input_ids, next(iter(metadata.values())), hidden)
        return hidden

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        digits = hidden_states[:, :2].round().long()
        ids = (digits[:, 0] * _DIGIT + digits[:, 1]).clamp(0, self._vocabulary - 1)
        logits = torch.zeros(
            len(ids), self._vocabulary, dtype=torch.float32, device=hidden_states.device
        )
        return logits.scatter_(1, ids[:, None], _SURE)

    def _speak(self, input_ids: torch.Tensor, metadata: Any, hidden: torch.Tensor) -> None:
        """Write the next token of each request into the hidden state of its last position."""
        starts = metadata.query_start_loc.tolist()
        lengths = metadata.seq_lens.tolist()
        count = min(starts[-1], len(input_ids))
        slots = metadata.slot_mapping[:count].cpu().long()
        self._remember(slots, input_ids[:count].cpu().int())
        tables = metadata.block_table.cpu().long()
        for row, length in enumerate(lengths[: len(starts) - 1]):
            if starts[row + 1] <= starts[row] or length <= 0:
                continue
            places = torch.arange(length)
            where = tables[row, places // self._block] * self._block + places % self._block
            token = self._speaker.next(self._tokens[where].tolist())
            last = starts[row + 1] - 1
            hidden[last, 0], hidden[last, 1] = divmod(token, _DIGIT)

    def _remember(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        held = slots >= 0
        slots, tokens = slots[held], tokens[held]
        if not len(slots):
            return
        needed = int(slots.max()) + 1
        if needed > len(self._tokens):
            grown = torch.zeros(2 * needed, dtype=torch.int32)
            grown[: len(self._tokens)] = self._tokens
            self._tokens = grown
        self._tokens[slots] = tokens


def _last(tokens: Sequence[int], wanted: int) -> int:
    for index in range(len(tokens) - 1, -1, -1):
        if tokens[index] == wanted:
            return index
    return -1
