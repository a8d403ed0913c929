"""One thief behind many accounts: accounts that are each a little suspect, and linked.

Accounts become members of the register when an honest person would be as suspect with at most
`MEMBER_SHARE`. Given that, an honest member's own share is uniform below it, whatever the rest of
the world does; so the members that are linked with each other are combined by Fisher's method
(1932), whose false alarms are known. Links do not look at suspicion: queries that are nearly the
same as another account's, the same group of keys or block of addresses, or the same distribution
over the coarse cells. What the linked members ask is also pooled and judged as one caller's
(`pooled.py`). A campaign is as suspect as the rarer of the two is, each of which has half of the
false alarms. Whose queries can be told from the rest of a window that was dealt out has no part in
the campaign, also if it is linked: somebody who happens to ask what a list is about.

Does not cover: accounts that ask fewer queries than a window needs.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vauban.detectors.extraction.pooled import (
    ACCOUNTS,
    PooledVerdicts,
    Verdict,
    stands_apart,
)
from vauban.detectors.extraction.projection import DIMENSIONS, Floats, Small
from vauban.detectors.extraction.reference import TENFOLDS

MEMBER_SHARE: Final = 0.1
MAX_RAISE: Final = 1 / 6
"""What others did can raise a caller's score by so much: one tenfold of its own evidence."""
MAX_MEMBERS: Final = 4096
MIN_ACCOUNTS: Final = 3
TWIN_LINKS: Final = 2
"""Nearly equal queries after which two accounts are linked."""
ALIKE: Final = 0.45
"""Affinity of two accounts' cell distributions from which they are linked."""
MAX_PARTNERS: Final = 256
"""Accounts whose nearly equal queries are counted, per account."""
_NONE: Final[Mapping[str, int]] = MappingProxyType({})
_NO_QUERIES: Final = np.empty((0, DIMENSIONS), np.int8)
DEALT_OUT: Final = 2.0
"""Tail of a pooled window from which an account that stands apart in it has no part in it."""
_WAYS: Final = 2
"""Fisher's method and the pooled window: two chances for a false alarm."""
_LOG_FACTORIALS: Final = np.cumsum(np.log(np.maximum(np.arange(MAX_MEMBERS), 1)))


@dataclass(frozen=True, slots=True)
class Campaign:
    """`name`: stable while its first member, by name, stays. `score` in [0, 1], like a caller's.
    `pooled`: the verdict on its pooled window, None where it is too short; `pooled_score`: what
    that comes to by itself."""

    name: str
    score: float
    accounts: tuple[str, ...]
    pooled: Verdict | None = None
    pooled_score: float = 0.0

    @property
    def signals(self) -> list[tuple[str, float]]:
        """What a member is shown of it; numbers only."""
        found = [("campaign", self.score), ("campaign_accounts", float(len(self.accounts)))]
        if self.pooled is not None:
            found += [
                ("campaign_pooled", self.pooled_score),
                ("campaign_queries", float(self.pooled.queries)),
                ("campaign_mingled", self.pooled.mingled),
                ("campaign_repeats", self.pooled.repeats),
            ]
        return [(name, round(value, 3)) for name, value in found]


class Campaigns:
    """The register of suspect accounts, at most `MAX_MEMBERS`; the least suspect leave first.

    :param cells: how many coarse cells there are.
    """

    def __init__(self, cells: int) -> None:
        self._rows: dict[str, int] = {}
        self._names: list[str] = [""] * MAX_MEMBERS
        self._tails: Floats = np.zeros(MAX_MEMBERS, np.float32)
        self._profiles: Floats = np.zeros((MAX_MEMBERS, cells), np.float32)
        self._free = list(reversed(range(MAX_MEMBERS)))
        self._used = 0
        self._tags: dict[str, set[str]] = {}
        self._twins: dict[str, Counter[str]] = {}
        self._counted_by: dict[str, set[str]] = {}  # who has an account among its twins
        self._pooled = PooledVerdicts()

    def twin(self, account: str, other: str) -> None:
        """Both asked nearly the same."""
        for one, two in ((account, other), (other, account)):
            partners = self._twins.get(one)
            if partners is None:
                partners = self._twins[one] = Counter()
            if two in partners or len(partners) < MAX_PARTNERS:
                partners[two] += 1
                self._counted_by.setdefault(two, set()).add(one)

    def forget(self, account: str) -> None:
        """Erase an account, also where others have it among their twins: one whose own room for
        partners is full may be counted by more accounts than it counts."""
        self._leave(account)
        self._pooled.forget(account)
        for partner in self._twins.pop(account, ()):
            self._counted_by[partner].discard(account)
        for other in self._counted_by.pop(account, ()):
            self._twins[other].pop(account)

    def judge(
        self,
        account: str,
        tail: float,
        cells: NDArray[np.integer],
        tags: tuple[str, ...] = (),
        window: Callable[[str], Small] = lambda _: _NO_QUERIES,
    ) -> Campaign | None:
        """Enter what an account has come to, and combine it with those it is linked to.

        :param tail: -log10 of the share of honest people as suspect.
        :param cells: coarse cell of each of its recent queries.
        :param tags: what it shares with other accounts by credential or address.
        :param window: the recent queries of an account, int8 [n, 64], the oldest first.
        """
        if tail < -math.log10(MEMBER_SHARE):
            self._leave(account)
            return None
        row = self._enter(account, tail, tags)
        counts = np.bincount(cells, minlength=self._profiles.shape[1]).astype(np.float32)
        self._profiles[row] = np.sqrt(counts / max(counts.sum(), 1.0))
        accounts = self._linked(account, row, tags)
        if len(accounts) < MIN_ACCOUNTS:
            return None
        found = self._combine(accounts, window)
        if found.pooled is not None and found.pooled.tail >= DEALT_OUT:
            others = [window(name) for name in accounts[: ACCOUNTS[-1]] if name != account]
            if stands_apart(window(account), others):
                return None
        return found

    def _linked(self, account: str, row: int, tags: tuple[str, ...]) -> list[str]:
        """An account and those it is linked to."""
        used = self._profiles[: self._used]
        linked = {row, *np.flatnonzero(used @ self._profiles[row] >= ALIKE).tolist()}
        for name, twins in self._twins.get(account, _NONE).items():
            if twins >= TWIN_LINKS and name in self._rows:
                linked.add(self._rows[name])
        for tag in tags:
            linked.update(map(self._rows.__getitem__, self._tags.get(tag, ())))
        return [self._names[row] for row in linked]

    def _combine(self, accounts: Sequence[str], window: Callable[[str], Small]) -> Campaign:
        accounts = sorted(accounts)
        tails = self._tails[[self._rows[name] for name in accounts]]
        most_suspect = [accounts[place] for place in np.argsort(-tails, kind="stable")]
        name = f"campaign-{hashlib.sha256(accounts[0].encode()).hexdigest()[:12]}"
        pooled = self._pooled.on(name, most_suspect, window)
        by_members = fisher(-math.log10(MEMBER_SHARE) - tails)
        by_window = pooled.tail if pooled is not None else 0.0
        # Every member's neighbourhood is a chance for a false alarm.
        chances = math.log10(_WAYS * len(self._rows))
        return Campaign(
            name, _score(max(by_members, by_window) - chances), tuple(accounts), pooled,
            _score(by_window - chances),
        )  # fmt: skip

    def _enter(self, account: str, tail: float, tags: tuple[str, ...]) -> int:
        if account not in self._rows:
            if not self._free:
                self._leave(min(self._rows, key=lambda name: float(self._tails[self._rows[name]])))
            self._rows[account] = self._free.pop()
            self._used = max(self._used, self._rows[account] + 1)
            for tag in tags:
                self._tags.setdefault(tag, set()).add(account)
        row = self._rows[account]
        self._names[row] = account
        self._tails[row] = tail
        return row

    def _leave(self, account: str) -> None:
        row = self._rows.pop(account, None)
        if row is None:
            return
        self._profiles[row] = 0.0
        self._tails[row] = 0.0
        self._names[row] = ""
        self._free.append(row)
        for tag in [tag for tag, names in self._tags.items() if account in names]:
            self._tags[tag].discard(account)
            if not self._tags[tag]:
                del self._tags[tag]


def _score(tail: float) -> float:
    return max(0.0, min(1.0, tail / TENFOLDS))


def fisher(log_shares: Sequence[float] | Floats) -> float:
    """-log10 of Fisher's combined p-value.

    :param log_shares: log10 of at most `MAX_MEMBERS` independent p-values, each 0 or less.
    """
    half = -float(np.minimum(log_shares, 0.0).sum()) * math.log(10)
    # The survival function of chi-square with 2k degrees: exp(-h) * sum of h^i / i! below k.
    orders = np.arange(len(log_shares))
    terms = orders * math.log(max(half, 1e-12)) - _LOG_FACTORIALS[: len(orders)]
    top = float(terms.max())
    log_sum = top + math.log(float(np.exp(terms - top).sum()))
    return max(0.0, (half - log_sum) / math.log(10))
