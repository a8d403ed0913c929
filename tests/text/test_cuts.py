"""What was taken out of a channel is found again, however much of it there was."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vauban.text.cuts import Cuts

# Each a gap before a cut, its length, and whether what came before it is let out then.
steps = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5), st.booleans()), max_size=12)


@given(steps, st.integers(0, 120), st.integers(1, 12))
def test_what_was_touched_is_what_any_cut_overlaps(
    steps: list[tuple[int, int, bool]], start: int, size: int
) -> None:
    cuts, at = Cuts(), 0
    taken: set[int] = set()
    for gap, length, let_out in steps:
        at += gap
        cuts.add(at, at + length, "secrets", "[redacted]")
        taken.update(range(at, at + length))
        at += length
        if let_out:
            cuts.forget(at)
    assert cuts.touch(start, start + size) is bool(taken & set(range(start, start + size)))
