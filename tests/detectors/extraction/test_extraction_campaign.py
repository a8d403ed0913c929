"""The register of linked accounts."""

from __future__ import annotations

import pickle

import numpy as np

from vauban.detectors.extraction.campaign import MAX_PARTNERS, Campaigns


def test_nothing_is_left_of_who_is_forgotten() -> None:
    """Also where others count it among their twins, and it had no room to count them."""
    rng = np.random.default_rng(7)
    campaigns = Campaigns(cells=8)
    names = [f"<account-{number}>" for number in range(2 * MAX_PARTNERS)]
    for other in names[1:]:
        campaigns.twin(names[0], other)
    for _ in range(4_000):
        campaigns.twin(*rng.choice(names, 2, replace=False).tolist())
    for number, name in enumerate(names[:20]):
        campaigns.judge(name, 3.0, np.array([number % 8]), ("group:a",))
    for name in rng.permutation(names).tolist():
        assert name.encode() in pickle.dumps(campaigns)
        campaigns.forget(name)
        assert name.encode() not in pickle.dumps(campaigns)
    assert b"account" not in pickle.dumps(campaigns)


def test_a_forgotten_account_comes_back_unlinked() -> None:
    campaigns = Campaigns(cells=8)
    hubs = ("hub-1", "hub-2")
    for hub in hubs:
        for number in range(MAX_PARTNERS):
            campaigns.twin(hub, f"other-{number}")
        for _ in range(2):
            campaigns.twin("late", hub)

    def found() -> bool:
        for number, hub in enumerate(hubs):
            campaigns.judge(hub, 3.0, np.array([number]))
        return campaigns.judge("late", 3.0, np.array([7])) is not None

    assert found()
    for hub in hubs:
        campaigns.forget(hub)
    assert not found()
