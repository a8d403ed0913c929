"""The engine half: screens requests inside vLLM's own batch and vetoes the first token.

One class serves both of vLLM's logits-processor interfaces (`vllm.logits_processors`):

* V1 runner (CPU, and GPU where V2 does not apply): `update_state` before each forward pass,
  `apply(logits)` after it;
* V2 runner (GPU default): `add_request` and `apply_staged_writes` before, `apply(logits, ctx)`
  after.

All requests that are new in a step are encoded together on vauban's own thread (on a GPU: its own
CUDA stream), started before the main model's forward pass and waited for only when the first
logits are edited. A veto forces the end-of-sequence token in every step that the request still
gets, so nothing that the model would have said can leave, whatever `min_tokens`, `n`, structured
output or resumption after preemption do.

Tensor parallelism: every rank samples and must sample the same token. Only rank 0 encodes; it
broadcasts its decisions as bytes, so the ranks agree bit for bit. A failing rank 0 broadcasts
vetoes. Pipeline parallelism: only the last stage samples and screens.

Does not cover: log-probabilities of the first token (vLLM takes them before logits processors run;
the front withholds them, offline `LLM` and gRPC do not). Pooling models and V1 speculative
decoding, for which vLLM loads no logits processor; the front screens there (`middleware.py`). A
thinking budget, which vLLM applies after logits processors and which can override a veto in the
engine; the front still withholds the answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor

from vauban.hosts.vllm.screener import Decision, StepScreener
from vauban.mark import RESERVED_KEY

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

logger = logging.getLogger(__name__)


class GuardLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Accepted by both model runners; vLLM constructs it once per worker.

    :raises ConfigError: wrong policy, missing weights; the engine then does not start.
    """

    def __init__(self, vllm_config: VllmConfig, *args: Any) -> None:
        self._v2_state = None if isinstance(args[0], torch.device) else args[0]
        device = args[0] if self._v2_state is None else self._v2_state.device
        self._group = _tensor_parallel_group()
        self._samples = _samples()
        screens = self._samples and (self._group is None or self._group.rank_in_group == 0)
        self._screener = StepScreener.load(vllm_config, device) if screens else None
        self._veto_token = _veto_token(vllm_config)
        self._rows: dict[int, Decision] = {}
        self._new: list[tuple[int, SamplingParams, Callable[[], list[int] | None]]] = []
        self._open: list[Decision] = []
        self._vetoed = False

    def is_argmax_invariant(self) -> bool:
        return False

    # -- V1 runner ---------------------------------------------------------------------------

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the rows of the batch: removed, then added, then moved (vLLM's order)."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, prompt_ids, _ in batch_update.added:
            self._new.append((row, params, partial(_same, prompt_ids)))
        self._launch()
        for source, target, direction in batch_update.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if replaced is not None and direction.name == "SWAP":
                self._rows[source] = replaced
        self._vetoed = any(decision.veto for decision in self._rows.values())

    # -- V2 runner ---------------------------------------------------------------------------

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        self._new.append((req_idx, sampling_params, partial(self._prompt_of_slot, req_idx)))
        return True

    def apply_staged_writes(self) -> None:
        self._launch()
        self._vetoed = any(decision.veto for decision in self._rows.values())

    def _prompt_of_slot(self, slot: int) -> list[int]:
        state: Any = self._v2_state
        length = int(state.prompt_len.np[slot])
        ids: list[int] = state.all_token_ids.gpu[slot, :length].tolist()
        return ids

    # -- both --------------------------------------------------------------------------------

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Force the veto token in the rows of blocked requests.

        :param logits: float [rows, vocabulary], edited in place.
        :param ctx: V2's `LogitsContext`; without it a row is a request.
        """
        self._settle()
        if not self._vetoed:
            return logits
        vetoed = [row for row, decision in self._rows.items() if decision.veto]
        if ctx is not None:  # a slot keeps its last decision until it is taken again
            present = set(ctx.idx_mapping_np.tolist())
            vetoed = [slot for slot in vetoed if slot in present]
            if not vetoed:
                return logits
        if ctx is None:
            rows = torch.tensor([row for row in vetoed if row < len(logits)], device=logits.device)
        else:
            mapping = ctx.expanded_idx_mapping
            slots = torch.tensor(vetoed, dtype=mapping.dtype, device=mapping.device)
            rows = torch.isin(mapping, slots).nonzero().flatten()
        if len(rows):
            rows = rows.long()
            logits[rows] = float("-inf")
            logits[rows, self._veto_token] = 0.0
        return logits

    def _launch(self) -> None:
        """Start encoding everything that is new; nothing is waited for."""
        if not self._new or not self._samples:
            self._new.clear()
            return
        if self._screener is not None:
            decisions = self._screener.launch(
                [((p.extra_args or {}).get(RESERVED_KEY), prompt) for _, p, prompt in self._new]
            )
        else:
            decisions = [Decision() for _ in self._new]  # rank 0 will say
        for (row, _, _), decision in zip(self._new, decisions, strict=True):
            self._rows[row] = decision
        self._open += decisions
        self._new.clear()

    def _settle(self) -> None:
        """Wait for the decisions of the rows that are new; every rank takes rank 0's.

        One entry per row, settled or not: only rank 0 knows which rows share a mark, and all
        ranks must broadcast the same number.
        """
        if not self._open:
            return
        if self._screener is not None:
            self._screener.settle(self._open)
        if self._group is not None:
            _share(self._group, self._open)
        self._open.clear()
        self._vetoed = any(decision.veto for decision in self._rows.values())


def _same(ids: list[int] | None) -> list[int] | None:
    return ids


def _share(group: Any, pending: Sequence[Decision]) -> None:
    """Broadcast rank 0's decisions to the tensor-parallel group, one byte each."""
    vetoes = torch.tensor([1 if d.veto else 0 for d in pending], dtype=torch.uint8)
    torch.distributed.broadcast(vetoes, src=group.ranks[0], group=group.cpu_group)
    for decision, veto in zip(pending, vetoes.tolist(), strict=True):
        decision.veto = bool(veto)


def _tensor_parallel_group() -> Any:
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    return group if group.world_size > 1 else None


def _samples() -> bool:
    from vllm.distributed import get_pp_group

    return bool(get_pp_group().is_last_rank)


def _veto_token(vllm_config: VllmConfig) -> int:
    """The end-of-sequence id that vLLM stops at, so that a vetoed request ends at once."""
    from vllm.tokenizers import cached_tokenizer_from_config

    tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
    found = getattr(tokenizer, "eos_token_id", None)
    return int(found) if found is not None else 0
