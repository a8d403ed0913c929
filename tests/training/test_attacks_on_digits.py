"""On scikit-learn's digits: as strong as an independent implementation, and training pays.

The other implementation is IBM's adversarial-robustness-toolbox (ART). Robust accuracy is the
share of 397 held-out digits that are still read right. Two models of one shape: one trained as
usual, one with `adversarial_training_step`, each in the way that suits it. The recipes were chosen
on these same digits: the numbers show that the code works, not what to expect elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from vauban.training.attacks import adversarial_training_step, fgsm, pgd

EPSILON = 0.14  # L-inf, pixels in [0, 1]
TRAIN_EPSILON = 0.18
RANGE: dict[str, Any] = {"minimum": 0.0, "maximum": 1.0}


class Digits(NamedTuple):
    """x [digits, 64] in [0, 1], y [digits]."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


@pytest.fixture(scope="module")
def digits() -> Digits:
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return Digits(x[order[:1400]], y[order[:1400]], x[order[1400:]], y[order[1400:]])


def new_model() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width in (64, 128, 128, 128, 128):
        layers += [nn.Linear(width, 128), nn.BatchNorm1d(128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 10))


class Recipe(NamedTuple):
    epochs: int
    batch: int
    rate: float
    weight_decay: float


def train(digits: Digits, recipe: Recipe, step: Callable[..., object]) -> nn.Module:
    model, random = new_model(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.rate, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * 1400 // recipe.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps)
    for _ in range(recipe.epochs):
        for rows in torch.randperm(1400, generator=random).split(recipe.batch):
            step(model, optimizer, digits.x[rows], digits.y[rows], random)
            schedule.step()
    return model.eval()


def usual_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, _: torch.Generator
) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def hardening_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor,
    random: torch.Generator,
) -> None:  # fmt: skip
    adversarial_training_step(
        model, optimizer, x, y, TRAIN_EPSILON, steps=5, generator=random, **RANGE
    )


@pytest.fixture(scope="module")
def plain(digits: Digits) -> nn.Module:
    return train(digits, Recipe(40, 100, 3e-3, 0.01), usual_step)


@pytest.fixture(scope="module")
def hardened(digits: Digits) -> nn.Module:
    return train(digits, Recipe(50, 140, 8e-3, 2.0), hardening_step)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """In percent."""
    return 100 * float((model(x).argmax(1) == y).float().mean())


def art_attack(model: nn.Module, digits: Digits, kind: str, norm: str, **options: Any) -> Tensor:
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    judge = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (64,), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    make = FastGradientMethod if kind == "fgsm" else ProjectedGradientDescent
    quiet = {} if kind == "fgsm" else {"verbose": False}
    attack = make(judge, norm=np.inf if norm == "linf" else 2, batch_size=512, **options, **quiet)
    return torch.from_numpy(attack.generate(digits.test_x.numpy(), digits.test_y.numpy()))


@pytest.mark.parametrize("trained", ["plain", "hardened"])
@pytest.mark.parametrize(
    ("kind", "norm", "epsilon", "starts"),
    [
        ("fgsm", "linf", 0.05, 0),
        ("fgsm", "l2", 0.5, 0),
        ("pgd", "linf", 0.1, 0),
        ("pgd", "linf", 0.1, 1),
        ("pgd", "l2", 0.5, 0),
        ("pgd", "l2", 0.5, 1),
    ],
)
def test_as_strong_as_an_independent_implementation(
    trained: str, kind: str, norm: str, epsilon: float, starts: int, digits: Digits,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    model, x, y = request.getfixturevalue(trained), digits.test_x, digits.test_y
    if kind == "fgsm":
        ours = fgsm(model, x, y, epsilon, norm=norm, **RANGE)
        theirs = art_attack(model, digits, kind, norm, eps=epsilon)
    else:
        size = epsilon / 4
        ours = pgd(
            model, x, y, epsilon, norm=norm, steps=20, step_size=size, random_start=bool(starts),
            generator=torch.Generator().manual_seed(2), **RANGE,
        )  # fmt: skip
        np.random.seed(2)  # what ART draws from
        theirs = art_attack(
            model, digits, kind, norm, eps=epsilon, eps_step=size, max_iter=20,
            num_random_init=starts,
        )  # fmt: skip
    clean, here, there = (accuracy(model, at, y) for at in (x, ours, theirs))
    assert here < clean
    assert abs(here - there) <= 2
    if kind == "fgsm":
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def robust_accuracy(model: nn.Module, digits: Digits) -> float:
    """In percent, the worst of five random starts for each digit."""
    right = torch.ones(len(digits.test_y), dtype=torch.bool)
    for seed in range(5):
        found = pgd(
            model, digits.test_x, digits.test_y, EPSILON, steps=40, step_size=EPSILON / 8,
            generator=torch.Generator().manual_seed(seed), **RANGE,
        )  # fmt: skip
        right &= model(found).argmax(1) == digits.test_y
    return 100 * float(right.float().mean())


def test_adversarial_training_pays(plain: nn.Module, hardened: nn.Module, digits: Digits) -> None:
    for model in (plain, hardened):
        assert accuracy(model, digits.test_x, digits.test_y) >= 96
    assert robust_accuracy(plain, digits) <= 5
    assert robust_accuracy(hardened, digits) >= 80


def test_the_other_implementation_finds_no_more(hardened: nn.Module, digits: Digits) -> None:
    theirs = art_attack(
        hardened, digits, "pgd", "linf", eps=EPSILON, eps_step=EPSILON / 8, max_iter=40,
        num_random_init=1,
    )  # fmt: skip
    assert accuracy(hardened, theirs, digits.test_y) >= 80


def test_untargeted_raises_the_loss_and_targeted_lowers_it(
    plain: nn.Module, digits: Digits
) -> None:
    """PGD further than FGSM."""
    x, y = digits.test_x, digits.test_y
    target = (y + 1) % 10

    def loss(at: Tensor, towards: Tensor) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(plain(at), towards))

    one, many = (attack(plain, x, y, 0.1, **RANGE) for attack in (fgsm, pgd))
    assert loss(x, y) < loss(one, y) < loss(many, y)
    one, many = (attack(plain, x, target, 0.1, targeted=True, **RANGE) for attack in (fgsm, pgd))
    assert loss(x, target) > loss(one, target) > loss(many, target)
