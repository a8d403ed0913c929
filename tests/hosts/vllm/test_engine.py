"""Rows of the batch and what is done to their logits, for both of vLLM's interfaces."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import MoveDirectionality
from vllm.v1.sample.logits_processor.state import BatchUpdateBuilder
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcessor

from vauban.hosts.vllm import engine
from vauban.hosts.vllm.engine import GuardLogitsProcessor
from vauban.hosts.vllm.screener import Decision
from vauban.mark import RESERVED_KEY

VETO_TOKEN = 3
VOCABULARY = 11
ROWS = 6


class FakeScreener:
    """The mark is the answer: "bad" vetoes. Without a mark the prompt decides (ids below 0)."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.by_mark: dict[str, Decision] = {}

    def launch(self, requests: Any) -> list[Decision]:
        self.batches.append(len(requests))
        return [self._one(mark, prompt) for mark, prompt in requests]

    def _one(self, mark: str | None, prompt: Any) -> Decision:
        if mark is None:
            decision = Decision()
            decision.screened = SimpleNamespace(bad=prompt()[0] < 0)  # type: ignore[assignment]
            return decision
        if mark not in self.by_mark:
            self.by_mark[mark] = Decision()
            self.by_mark[mark].screened = SimpleNamespace(bad="bad" in mark)  # type: ignore
        return self.by_mark[mark]

    def settle(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if decision.veto is None:
                decision.veto = decision.screened.bad  # type: ignore[union-attr]


def make(monkeypatch: pytest.MonkeyPatch, *args: Any, group: Any = None, samples: bool = True):
    """The real constructor, without vLLM's process groups, tokenizer and our weights."""
    monkeypatch.setattr(engine, "_tensor_parallel_group", lambda: group)
    monkeypatch.setattr(engine, "_samples", lambda: samples)
    monkeypatch.setattr(engine, "_veto_token", lambda _: VETO_TOKEN)
    monkeypatch.setattr(engine.StepScreener, "load", lambda *_: FakeScreener())
    return GuardLogitsProcessor(None, *args)  # type: ignore[arg-type]


@pytest.fixture
def guard_rows(monkeypatch: pytest.MonkeyPatch) -> GuardLogitsProcessor:
    return make(monkeypatch, torch.device("cpu"), False)


def params(mark: str | None) -> SamplingParams:
    return SamplingParams(extra_args=None if mark is None else {RESERVED_KEY: mark})


def update(processor: GuardLogitsProcessor, *added: tuple[int, str | None], removed=(), moved=()):
    builder = BatchUpdateBuilder()
    for row in removed:
        builder.removed_append(row)
    builder.added = [(row, params(mark), [1], []) for row, mark in added]
    builder.moved = list(moved)
    processor.update_state(builder.get_and_reset(ROWS))


def logits(rows: int = ROWS) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(7))


def vetoed_rows(processor: GuardLogitsProcessor, rows: int = ROWS, ctx: Any = None) -> set[int]:
    """Apply, and check every row bit for bit: forced, or as it was."""
    before = logits(rows)
    after = processor.apply(before.clone(), ctx)
    forced = torch.full((VOCABULARY,), float("-inf"))
    forced[VETO_TOKEN] = 0.0
    found = set()
    for row in range(rows):
        if torch.equal(after[row], forced):
            found.add(row)
        else:
            assert torch.equal(after[row], before[row])
    return found


def test_both_runners_take_the_class(guard_rows: GuardLogitsProcessor) -> None:
    assert issubclass(GuardLogitsProcessor, LogitsProcessor)
    assert guard_rows.is_argmax_invariant() is False


def test_an_empty_batch(guard_rows: GuardLogitsProcessor) -> None:
    guard_rows.update_state(None)
    assert vetoed_rows(guard_rows) == set()
    assert vetoed_rows(guard_rows, rows=0) == set()


def test_vetoed_rows_are_forced_and_others_untouched(guard_rows: GuardLogitsProcessor) -> None:
    update(guard_rows, (0, "good 1"), (1, "bad 1"), (2, "good 2"), (3, "bad 2"))
    assert vetoed_rows(guard_rows) == {1, 3}
    guard_rows.update_state(None)
    assert vetoed_rows(guard_rows) == {1, 3}  # in every step that the request still gets
    assert vetoed_rows(guard_rows, rows=2) == {1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_forced_row_has_one_choice(guard_rows: GuardLogitsProcessor, dtype: torch.dtype) -> None:
    update(guard_rows, (0, "bad"))
    row = guard_rows.apply(logits(1).to(dtype))[0]
    chances = torch.softmax(row.float(), dim=0)
    assert chances[VETO_TOKEN] == 1.0
    assert not torch.isnan(chances).any()


def test_a_forced_row_overrides_what_ran_before(guard_rows: GuardLogitsProcessor) -> None:
    """min_tokens and grammars forbid the end of sequence by -inf."""
    update(guard_rows, (0, "bad"))
    masked = torch.full((1, VOCABULARY), float("-inf"))
    masked[0, 5] = 1.0
    assert guard_rows.apply(masked)[0].argmax() == VETO_TOKEN


def test_new_requests_of_a_step_are_launched_together(guard_rows: GuardLogitsProcessor) -> None:
    update(guard_rows, (0, "good"), (1, "bad"), (2, None))
    guard_rows.update_state(None)
    assert guard_rows._screener.batches == [3]  # type: ignore[union-attr]


def test_children_with_one_mark_are_all_vetoed(guard_rows: GuardLogitsProcessor) -> None:
    update(guard_rows, (0, "bad"), (1, "bad"), (2, "good"), (3, "good"))
    assert vetoed_rows(guard_rows) == {0, 1}
    update(guard_rows, (4, "bad"), removed=[0])  # resumed after preemption, in another row
    assert vetoed_rows(guard_rows) == {1, 4}


def test_a_row_is_forgotten_with_its_request(guard_rows: GuardLogitsProcessor) -> None:
    update(guard_rows, (0, "bad"))
    assert vetoed_rows(guard_rows) == {0}
    update(guard_rows, removed=[0])
    assert vetoed_rows(guard_rows) == set()
    update(guard_rows, (0, "good"))
    assert vetoed_rows(guard_rows) == set()


def test_a_replaced_row_belongs_to_the_new_request(guard_rows: GuardLogitsProcessor) -> None:
    update(guard_rows, (0, "bad"), (1, "good"))
    update(guard_rows, (0, "good 2"), (1, "bad 2"))
    assert vetoed_rows(guard_rows) == {1}


operations = st.lists(
    st.tuples(
        st.lists(st.integers(0, ROWS - 1), max_size=3, unique=True),
        st.lists(
            st.tuples(st.integers(0, ROWS - 1), st.sampled_from(["bad", "good", None])),
            max_size=4,
            unique_by=lambda added: added[0],
        ),
        st.lists(
            st.tuples(
                st.integers(0, ROWS - 1), st.integers(0, ROWS - 1),
                st.sampled_from(MoveDirectionality),
            ).filter(lambda move: move[0] != move[1]),
            max_size=3,
        ),
    ),
    max_size=8,
)  # fmt: skip


@settings(max_examples=150)
@given(steps=operations)
def test_rows_are_followed_as_vllm_follows_them(steps: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        processor = make(patch, torch.device("cpu"), False)
    theirs: dict[int, str] = {}
    for number, (removed, added, moved) in enumerate(steps):
        builder = BatchUpdateBuilder()
        for row in removed:
            # vLLM takes a row that is filled again out of `removed` (`pop_removed`).
            if row not in {new for new, _ in added}:
                builder.removed_append(row)
        marks = [(row, mark and f"{mark} {number}.{row}") for row, mark in added]
        builder.added = [(row, params(m), [-1 if row % 2 else 1], []) for row, m in marks]
        builder.moved = moved
        change = builder.get_and_reset(ROWS)
        processor.update_state(change)
        process_dict_updates(
            theirs,
            change,
            lambda p, ids, _: (
                (p.extra_args or {}).get(RESERVED_KEY) or ("bad" if ids[0] < 0 else "good")
            ),
        )
        expected = {row for row, answer in theirs.items() if answer.startswith("bad")}
        assert vetoed_rows(processor) == expected
        assert set(processor._rows) == set(theirs)


# -- V2 runner -----------------------------------------------------------------------------------


class Slots:
    """The parts of vLLM's request state that are read: prompts of 4 slots, on the CPU."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.prompt_len = SimpleNamespace(np=np.zeros(4, np.int32))
        self.all_token_ids = SimpleNamespace(gpu=torch.zeros(4, 16, dtype=torch.int32))

    def fill(self, slot: int, ids: list[int]) -> None:
        self.prompt_len.np[slot] = len(ids)
        self.all_token_ids.gpu[slot, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        self.all_token_ids.gpu[slot, len(ids) :] = 99  # the answer so far is not the prompt


def context(*slots: int, dtype: torch.dtype = torch.int32) -> LogitsContext:
    """One row for each given slot, in this order."""
    rows = torch.tensor(slots, dtype=dtype)
    unique = torch.tensor(sorted(set(slots)), dtype=dtype)
    zeros = torch.zeros(len(slots), dtype=torch.int64)
    return LogitsContext(rows, unique, unique.numpy(), zeros, zeros, zeros, unique.numpy())


@pytest.fixture
def slots() -> Slots:
    return Slots()


@pytest.fixture
def v2(monkeypatch: pytest.MonkeyPatch, slots: Slots) -> GuardLogitsProcessor:
    return make(monkeypatch, slots)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_rows_of_a_slot_are_forced_wherever_they_are(
    v2: GuardLogitsProcessor, dtype: torch.dtype
) -> None:
    for slot, mark in enumerate(["good", "bad 1", "good", "bad 2"]):
        assert v2.add_request(slot, params(mark)) is True
    v2.apply_staged_writes()
    assert v2._screener.batches == [4]  # type: ignore[union-attr]
    assert vetoed_rows(v2, 4, context(0, 1, 2, 3, dtype=dtype)) == {1, 3}
    assert vetoed_rows(v2, 4, context(3, 2, 1, 0, dtype=dtype)) == {0, 2}
    # Speculative decoding: several rows for a request.
    assert vetoed_rows(v2, 7, context(0, 1, 1, 1, 2, 3, 3, dtype=dtype)) == {1, 2, 3, 5, 6}
    assert vetoed_rows(v2, 2, context(0, 2, dtype=dtype)) == set()
    assert vetoed_rows(v2, 0, context(dtype=dtype)) == set()


def test_a_slot_that_is_used_again_belongs_to_the_new_request(v2: GuardLogitsProcessor) -> None:
    v2.add_request(0, params("bad"))
    v2.apply_staged_writes()
    assert vetoed_rows(v2, 1, context(0)) == {0}
    v2.add_request(0, params("good"))
    v2.apply_staged_writes()
    assert vetoed_rows(v2, 1, context(0)) == set()


def test_an_unmarked_prompt_is_read_from_its_slot(v2: GuardLogitsProcessor, slots: Slots) -> None:
    slots.fill(1, [-5, 6, 7])
    slots.fill(2, [5, 6])
    assert v2._prompt_of_slot(1) == [-5, 6, 7]
    for slot in (1, 2):
        v2.add_request(slot, params(None))
    v2.apply_staged_writes()
    assert vetoed_rows(v2, 2, context(1, 2)) == {0}


@settings(max_examples=60)
@given(
    steps=st.lists(
        st.tuples(
            st.dictionaries(st.integers(0, 3), st.sampled_from(["bad", "good"]), max_size=4),
            st.lists(st.integers(0, 3), max_size=8),
        ),
        max_size=6,
    )
)
def test_slots_are_followed(steps: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        processor = make(patch, Slots())
    known: dict[int, str] = {}
    for number, (added, rows) in enumerate(steps):
        for slot, answer in added.items():
            processor.add_request(slot, params(f"{answer} {number}.{slot}"))
        known |= added
        processor.apply_staged_writes()
        expected = {row for row, slot in enumerate(rows) if known.get(slot) == "bad"}
        assert vetoed_rows(processor, len(rows), context(*rows)) == expected


# -- several ranks ---------------------------------------------------------------------------------


class Wire:
    """Two tensor-parallel ranks: what rank 0 broadcasts, rank 1 gets."""

    def __init__(self) -> None:
        self.sent: list[torch.Tensor] = []

    def broadcast(self, tensor: torch.Tensor, src: int, group: Any) -> None:
        if group == 0:
            self.sent.append(tensor.clone())
        else:
            given = self.sent.pop(0)
            assert given.shape == tensor.shape
            tensor.copy_(given)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> list[GuardLogitsProcessor]:
    monkeypatch.setattr(torch.distributed, "broadcast", Wire().broadcast)
    made = []
    for rank in (0, 1):
        group = SimpleNamespace(rank_in_group=rank, ranks=[0, 1], cpu_group=rank)
        made.append(make(monkeypatch, torch.device("cpu"), False, group=group))
    assert made[0]._screener is not None
    assert made[1]._screener is None
    return made


def test_all_ranks_agree(ranks: list[GuardLogitsProcessor]) -> None:
    """Also for children of one mark and a resumed request: only rank 0 knows that they are."""
    steps: list[list[tuple[int, str | None]]] = [
        [(0, "good"), (1, "bad"), (2, "bad"), (3, "good")],
        [],
        [(4, "bad"), (0, "good")],
        [(5, "new"), (3, None)],
    ]
    for added in steps:
        found = []
        for rank in ranks:
            update(rank, *added)
            found.append(vetoed_rows(rank))
        assert found[0] == found[1]
    assert found[0] == {1, 2, 4}


def test_a_rank_that_does_not_sample_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    early = make(monkeypatch, torch.device("cpu"), False, samples=False)
    for number in range(5):
        update(early, (0, f"bad {number}"))
    assert early._screener is None
    assert not early._rows
    assert not early._open
    assert not early._new
