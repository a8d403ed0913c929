"""What the embeddings of one caller's queries look like, one after the other.

People ask in sessions: a query resembles those just before and after it. A script that walks a
list or samples a pool does not, however wide or narrow the pool is. Two questions are asked of
each query, both against the rest of the same window, so that it does not matter how alike a
caller's queries are on the whole:

* how much more it resembles its neighbours at lag 1, 2 and 8 than any other (`lag`, in standard
  deviations; its sum over a window is a z-score under exchangeability);
* how surprising its best neighbour among the `NEAR` before and after it is (`order`, a p-value:
  uniform where the order means nothing, near 0 inside a session), which tells the queries that
  stand alone from those that belong to a session;
* whether it goes on from the one just before it (`follow`, a p-value, too), which splits the
  window into threads. By rank and not by cosine, since texts of some pools are all alike.

Covers: windows of any length from `MIN_QUERIES`. Does not cover: a thief who sorts the queries and
cuts them into pieces as long and as varied as people's sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

NEAR: Final = 8
"""Queries before and after that count as the same session."""
WINDOW: Final = 512
"""Queries whose vectors are kept; what a query is compared with."""
MIN_QUERIES: Final = 32
SIMILAR: Final = 0.5
"""Cosine from which two queries are about the same; of 64-d projections of unit embeddings."""
KNOWN: Final = 0.75
"""Cosine from which a query is a variant of one that was asked before."""

LAGS: Final = (1, 2, 8)
GOES_ON: Final = 1 / 8
"""A query goes on with a thread if at most this share of the rest resembles it more than the one
just before it does."""
SHORT_THREADS: Final = (3, 6)
"""Fewest and most queries of a short thread. Two in a row are alike by chance."""

STATISTICS: Final = (
    "session_strength",
    "lone_order_share",
    "lone_share",
    "lone_new_share",
    "lone_cells",
    "session_spread",
    "interrupts",
    "new_sessions",
    "new_share",
    "short_threads",
)
"""Names, in the order of `statistics`:

* session_strength: ln(1 + z) of the lag with the largest z-score; about 0.5 for a script, 2 to 5
  for people.
* lone_order_share: Storey's estimate of the share of queries without a session, in [0, 2].
* lone_share: queries that nothing near resembles, neither absolutely nor by rank, in [0, 1].
* lone_new_share: those that nothing in the whole window resembles either, in [0, 1].
* lone_cells: different fine cells among the queries without a session, per query, in [0, 1].
* session_spread: standard deviation over mean of the lengths of sessions; a script that follows
  up every seed equally often has little of it.
* interrupts: queries that nothing near resembles, inside a session that goes on, in [0, 1].
* new_sessions: sessions that begin with something new to the window, per query, in [0, 1]; what
  goes on after an interruption counts as begun by it.
* new_share: queries that nothing in the window but their session resembles, in [0, 1].
* short_threads: queries in threads of `SHORT_THREADS` queries, in [0, 1]. A script that follows up
  every seed a few times has little else; people have longer threads, too, and lone queries.
"""

_ALONE: Final = 0.55
_FEW_SESSIONS: Final = 2
_OFFSETS: Final = np.arange(-NEAR, NEAR + 1)
_WITHIN: Final = tuple(np.abs(_OFFSETS) <= lag for lag in LAGS)
_SQUARE_ROOTS: Final = np.sqrt(np.array(LAGS))


@dataclass(frozen=True, slots=True)
class Measured:
    """One number per query, float32 [n] each; `stack` has them as rows.

    `order`: p-value in [0, 1]. `near`: best cosine within `NEAR` before and after, `before`: only
    before. `far`: best cosine with the rest of the window; -1 where there is nothing to compare.
    `follow`: share of the rest as similar as the one just before, in [0, 1]; 1 where there is none.
    `lags`: [len(LAGS), n], mean cosine with the queries up to that lag away, standardised by the
    rest of the window.
    """

    order: Floats
    near: Floats
    before: Floats
    far: Floats
    follow: Floats
    lags: Floats

    def stack(self) -> Floats:
        """float32 [`MEASURES`, n]."""
        rows: Floats = np.vstack(
            [self.order, self.near, self.before, self.far, self.follow, self.lags]
        )
        return rows

    @classmethod
    def unstack(cls, rows: NDArray[np.floating]) -> Measured:
        rows = rows.astype(np.float32)
        return cls(rows[0], rows[1], rows[2], rows[3], rows[4], rows[5:])


MEASURES: Final = 5 + len(LAGS)


@dataclass(frozen=True, slots=True, eq=False)
class _Band:
    """Neighbours of the queries from some row of a window on, [rows, offsets] each.

    `places`: where in the flat matrix of products; a query's own where there is none. `inside`:
    whether there is one; `close`: other than itself. `rest`, `neighbours`: how many queries are
    not near, and near [rows]. `lags`: for each of `LAGS`, which are up to it, and how many they
    are, at least 1 [rows].
    """

    places: NDArray[np.intp]
    inside: NDArray[np.bool_]
    close: NDArray[np.bool_]
    rest: NDArray[np.intp]
    neighbours: NDArray[np.intp]
    lags: Sequence[tuple[NDArray[np.bool_], NDArray[np.intp]]]


@lru_cache(maxsize=64)
def _band(n: int, start: int) -> _Band:
    """Kept, as windows are measured at the same few lengths again and again: 10 kB for a block,
    130 kB for a whole window."""
    own = np.arange(start, n)[:, None]
    columns = own + _OFFSETS
    inside = (columns >= 0) & (columns < n)
    places = (own - start) * n + np.where(inside, columns, own)
    close = inside & (_OFFSETS != 0)
    taken = [close & within for within in _WITHIN]
    lags = [(mask, np.maximum(mask.sum(axis=1), 1)) for mask in taken]
    return _Band(places, inside, close, n - inside.sum(axis=1), close.sum(axis=1), lags)


def measure(vectors: Floats, start: int) -> Measured:
    """Measure the queries from row `start` on against the whole window.

    :param vectors: unit length [n, d], in order of arrival.
    """
    at = _band(len(vectors), start)
    similar = vectors[start:] @ vectors.T
    flat = similar.reshape(-1)
    band = flat[at.places]
    # What is near is taken out of the sums, and out of the comparisons, over the whole row.
    inside = np.where(at.inside, band, 0.0)
    total = similar.sum(axis=1) - inside.sum(axis=1)
    squares = np.einsum("ij,ij->i", similar, similar) - (inside * inside).sum(axis=1)
    flat[at.places] = -1.0
    best_far = similar.max(axis=1)

    kept = np.where(at.close, band, -1.0)
    before = kept[:, :NEAR].max(axis=1)
    near = np.maximum(before, kept[:, NEAR:].max(axis=1))
    better = (similar >= near[:, None]).sum(axis=1) * (near > -1.0)
    # As if the neighbours had been drawn from the rest of the window: one of them is the best.
    above = (better + 0.5) / (at.rest + 1.0)
    order = 1.0 - (1.0 - above) ** at.neighbours
    better = (similar >= kept[:, NEAR - 1 : NEAR]).sum(axis=1)
    follow = np.minimum((better + 0.5) / (at.rest + 1.0), 1.0)

    least = np.maximum(at.rest, 1)
    mean = total / least
    spread = np.sqrt(np.maximum(squares / least - mean * mean, 1e-4))
    lags = np.empty((len(LAGS), len(band)), np.float32)
    for place, (taken, count) in enumerate(at.lags):
        lags[place] = (np.where(taken, band, 0.0).sum(axis=1) / count - mean) / spread
    return Measured(
        order.astype(np.float32), near, before, best_far, follow.astype(np.float32), lags
    )


def statistics(
    measured: Measured, cells: NDArray[np.integer], lengths: Sequence[int]
) -> list[Floats]:
    """The statistics of trailing windows, float32 [len(STATISTICS)] each.

    :param cells: fine cell of each query, [n].
    :param lengths: of the windows, 1 to n.
    """
    lone = measured.order > 0.5
    alone = lone & (measured.near < _ALONE)
    new = measured.far < KNOWN
    start = measured.before < SIMILAR
    goes_on = ~np.append(start[1:], True)
    session = start & goes_on
    flags = np.stack([lone, alone, lone & new, alone & goes_on, session & new, new])
    edges = np.flatnonzero(np.append(start, True))
    found = []
    for n in lengths:
        strength = float((measured.lags[:, -n:].sum(axis=1) * _SQUARE_ROOTS).max()) / np.sqrt(n)
        shares = np.count_nonzero(flags[:, -n:], axis=1) / n
        own = cells[-n:][lone[-n:]].tolist()
        found.append(
            np.array(
                [
                    np.log1p(max(strength, 0.0)),
                    2.0 * shares[0],
                    shares[1],
                    shares[2],
                    len(set(own)) / n,
                    _session_spread(edges[np.searchsorted(edges, len(start) - n) :]),
                    *shares[3:],
                    _in_short_threads(measured.follow[-n:]) / n,
                ],
                dtype=np.float32,
            )
        )
    return found


def _in_short_threads(follow: Floats) -> int:
    """How many queries are in short threads."""
    begins = np.flatnonzero(np.append(follow > GOES_ON, True))
    lengths = np.diff(begins, prepend=0)
    least, most = SHORT_THREADS
    return int(lengths[(lengths >= least) & (lengths <= most)].sum())


def _session_spread(edges: NDArray[np.intp]) -> float:
    """Standard deviation over mean of the lengths of sessions; 1 where there are few.

    :param edges: where sessions start, and where the window ends.
    """
    lengths = edges[1:] - edges[:-1]
    lengths = lengths[lengths > 1]
    count = len(lengths)
    if count <= _FEW_SESSIONS:
        return 1.0
    mean = float(lengths.sum()) / count
    variance = max(float(lengths @ lengths) / count - mean * mean, 0.0)
    return float(np.sqrt(variance)) / max(mean - 1.0, 0.5)
