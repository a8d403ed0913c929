"""A campaign's own window: what its accounts ask, pooled, and judged as one caller's.

The order of the pooled queries says nothing, since those of honest people who come in turns look
like a script. What is left without it is whether the accounts can be told apart by what they ask.
People come back to their own subjects, also colleagues who share them: what is most like a query,
of all that the accounts asked, mostly is the same account's. Of one list that was dealt out to
many accounts it is anybody's (the nearest-neighbour test of Schilling 1986, the other way round).
How little honest people who are linked are apart comes from simulated ones, colleagues among them
(`training/pooled.py`); no thief was used.

Covers: accounts that draw from one pool, also in sessions that go across them, from about 8
queries each. Does not cover: a list that is dealt out by subject or by session, and accounts that
mix it into an honest person's talk or ask a seventh of it twice; those are left to Fisher's method
(`campaign.py`). Where some accounts do that and the rest don't, they may stand apart from it and
not be named. The programs of one service behind several keys look like a campaign: declare them
(`--service`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vauban.detectors.extraction.projection import SCALE, Small
from vauban.detectors.extraction.reference import tail_of

POOLED_QUERIES: Final = 512
"""Most queries of a campaign that are looked at together; the last ones of each account."""
LEAST_QUERIES: Final = 64
"""Pooled queries below which nothing is said."""
LEAST_EACH: Final = 8
"""Queries of an account below which it does not take part."""
JUDGED_EVERY: Final = 8
"""Judgements of members, each of 32 queries, after which a campaign is judged anew."""
MOST_CAMPAIGNS: Final = 1024
"""Campaigns whose verdict is kept, about 800 bytes each; who was silent longest is forgotten."""
APART: Final = 0.75
"""Below this share of what chance would make of it, an account is not mingled with the others."""
_KNOWN: Final = 0.75 * SCALE * SCALE
ACCOUNTS: Final = (3, 5, 10, 20, 40)
"""So many the tables are for; of more, the most suspect are pooled."""
_MINGLED: Final = (
    (0.2629, 0.3929, 0.4771, 0.5492, 0.6140, 0.6804, 0.7683, 0.7877),
    (0.3302, 0.4356, 0.4938, 0.5590, 0.6192, 0.6737, 0.6972, 0.7653),
    (0.4218, 0.5331, 0.5935, 0.6436, 0.6984, 0.7263, 0.7404, 0.7667),
    (0.5085, 0.6303, 0.6891, 0.7291, 0.7670, 0.7869, 0.8005, 0.8236),
    (0.6024, 0.7122, 0.7591, 0.7955, 0.8231, 0.8423, 0.8508, 0.8653),
)
"""How mingled honest accounts are, at `reference.LEVELS`, for so many accounts."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one campaign's pooled window.

    `tail`: -log10 of the share of honest groups of accounts that are as mingled. `mingled`: 0 where
    every query is most like another one of its own account, 1 where accounts say nothing; a little
    more by chance. `repeats`: share of queries that resemble another of the window.
    """

    tail: float
    mingled: float
    repeats: float
    accounts: int
    queries: int


def judge(windows: Sequence[Small]) -> Verdict | None:
    """None where there is too little to say anything.

    :param windows: int8 [n, 64], the queries of each account, oldest first.
    """
    parts = _last(windows)
    sizes = np.array([len(part) for part in parts])
    if len(parts) < ACCOUNTS[0] or sizes.sum() < LEAST_QUERIES:
        return None
    mingled, repeats = measure(np.concatenate(parts), np.repeat(np.arange(len(parts)), sizes))
    return Verdict(_tail(mingled, len(parts)), mingled, repeats, len(parts), int(sizes.sum()))


def measure(small: Small, account: NDArray[np.integer]) -> tuple[float, float]:
    """`mingled` and `repeats` of a `Verdict`. Where several are equally near, each counts a part.

    :param small: int8 [n, 64].
    :param account: number of each query's account [n], 0 or more.
    """
    rows = small.astype(np.float32)
    products = rows @ rows.T
    np.fill_diagonal(products, -np.inf)
    nearest = products.max(axis=1, keepdims=True)
    best = products == nearest
    same = account[:, None] == account[None]
    own = float((np.count_nonzero(best & same, axis=1) / np.count_nonzero(best, axis=1)).mean())
    by_chance = float((np.bincount(account)[account] - 1.0).mean()) / (len(rows) - 1.0)
    return (1.0 - own) / (1.0 - by_chance), float((nearest >= _KNOWN).mean())


def stands_apart(window: Small, others: Sequence[Small]) -> bool:
    """Whether one account can be told from the others, as a person can be who happens to ask what
    a list is about.

    :param window: its queries, oldest first; `others`: those of the other accounts. int8 [n, 64].
    """
    if len(window) < LEAST_EACH or not _last(others):
        return False
    own, *rest = _last([window, *others])
    rows = own.astype(np.float32)
    inside = rows @ rows.T
    np.fill_diagonal(inside, -np.inf)
    outside = rows @ np.concatenate(rest).astype(np.float32).T
    share = float((inside.max(axis=1) > outside.max(axis=1)).mean())
    by_chance = (len(own) - 1.0) / (len(own) + outside.shape[1] - 1.0)
    return bool(1.0 - share < APART * (1.0 - by_chance))


def _last(windows: Sequence[Small]) -> list[Small]:
    """Of each of the first accounts that ask enough, as many of the last queries."""
    windows = [window for window in windows if len(window) >= LEAST_EACH]
    windows = windows[: ACCOUNTS[-1]]
    each = POOLED_QUERIES // max(len(windows), 1)
    return [window[-each:] for window in windows]


def _tail(mingled: float, accounts: int) -> float:
    rows = np.array(_MINGLED).T
    table = [float(np.interp(np.log(accounts), np.log(ACCOUNTS), row)) for row in rows]
    return tail_of(mingled, table)


@dataclass(slots=True)
class _Kept:
    """`pooled`: whose queries the verdict is on. `size`: how many accounts there were in all."""

    verdict: Verdict | None
    pooled: Sequence[str]
    size: int
    judged: int = 0

    def is_on(self, accounts: Sequence[str]) -> bool:
        """Whether it is on those, give or take some."""
        common = len(set(accounts).intersection(self.pooled))
        return 2 * common >= len(self.pooled) and 4 * len(accounts) < 5 * self.size


class PooledVerdicts:
    """The last verdict on each campaign, by its name; at most `MOST_CAMPAIGNS`."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def on(
        self, campaign: str, accounts: Sequence[str], window: Callable[[str], Small]
    ) -> Verdict | None:
        """The verdict on a campaign of which a member was judged just now. Members that are linked
        to different others may share its name, and not the verdict.

        :param accounts: the most suspect first.
        :param window: of an account by name.
        """
        kept = self._kept.get(campaign)
        if kept is None or kept.judged >= JUDGED_EVERY or not kept.is_on(accounts):
            pooled = accounts[: ACCOUNTS[-1]]
            verdict = judge([*map(window, pooled)])
            kept = self._kept[campaign] = _Kept(verdict, pooled, len(accounts))
            while len(self._kept) > MOST_CAMPAIGNS:
                self._kept.popitem(last=False)
        kept.judged += 1
        self._kept.move_to_end(campaign)
        return kept.verdict

    def forget(self, account: str) -> None:
        """Erase the verdicts that are on its queries, too."""
        for campaign in [name for name, kept in self._kept.items() if account in kept.pooled]:
            del self._kept[campaign]
