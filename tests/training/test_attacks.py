"""Attacks stay in their ball and range, reach known optima, and leave no trace in the model.

How strong they are is in `test_attacks_on_digits.py`. CUDA runs the same code as the CPU; one test
compares the two.
"""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from vauban.detectors.bert import EncoderModel
from vauban.errors import AttackError
from vauban.training import attacks
from vauban.training.attacks import adversarial_training_step, fgsm, pgd
from vauban.training.base import Start

README = Path(__file__).parents[2] / "README.md"
NORMS = ("linf", "l2")
BOTH = pytest.mark.parametrize("attack", [fgsm, pgd])
EACH_NORM = pytest.mark.parametrize("norm", NORMS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy_net() -> nn.Sequential:
    """All that a careless attack disturbs, with flags that are not all alike."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)
    )
    net.train()[1].eval()
    return net


def batch(count: int = 5) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 6, generator=seeded(1)), torch.arange(count) % 3


def score(output: Tensor, y: Tensor) -> Tensor:
    """A loss that is linear in the logits, so that on a linear model optima are known."""
    return output[:, 0] * y


def length(offset: Tensor, norm: str) -> Tensor:
    rows = offset.flatten(1)
    return rows.abs().amax(1) if norm == "linf" else rows.norm(dim=1)


# What an attack gives


@BOTH
@settings(max_examples=25)
@given(
    norm=st.sampled_from(NORMS),
    epsilon=st.floats(0, 2),
    low=st.floats(-1, 0),
    targeted=st.booleans(),
    seed=st.integers(0, 9),
)
def test_stays_in_ball_and_range_and_leaves_no_trace(
    attack: Callable[..., Tensor],
    norm: str,
    epsilon: float,
    low: float,
    targeted: bool,
    seed: int,
) -> None:
    model, (x, y) = noisy_net(), batch()
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags, kept = [m.training for m in model.modules()], x.clone()
    high = torch.linspace(1, 2, 6)  # one per feature
    random = {"generator": seeded(seed), "steps": 3} if attack is pgd else {}

    found = attack(
        model, x, y, epsilon, norm=norm, minimum=low, maximum=high, targeted=targeted, **random
    )

    assert (length(found - x, norm) <= epsilon + 1e-5).all()
    assert (found >= low).all()
    assert (found <= high).all()
    assert found.dtype == x.dtype
    assert not found.requires_grad
    assert torch.equal(x, kept)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) == 1
    assert (gradients[0] == 7).all()


@pytest.mark.parametrize("attack", [fgsm, partial(pgd, step_size=0.3)], ids=["fgsm", "pgd"])
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
@pytest.mark.parametrize("targeted", [False, True])
def test_reaches_the_optimum_of_a_linear_model(
    attack: Callable[..., Tensor], norm: str, dual: int, targeted: bool
) -> None:
    """It is epsilon times the dual norm of the weights, up or down."""
    model, (x, _) = nn.Linear(6, 1), batch()
    y = torch.ones(len(x))
    found = attack(model, x, y, 0.3, norm=norm, loss=score, targeted=targeted)
    with torch.no_grad():
        rise = score(model(found), y) - score(model(x), y)
        best = 0.3 * torch.linalg.vector_norm(model.weight, dual) * (-1 if targeted else 1)
    torch.testing.assert_close(rise, best.expand(5), rtol=1e-3, atol=0)


@BOTH
@EACH_NORM
def test_zero_epsilon_is_identity(attack: Callable[..., Tensor], norm: str) -> None:
    x, y = batch()
    found = attack(noisy_net(), x, y, 0.0, norm=norm, minimum=0, maximum=1)
    assert torch.equal(found, x)
    assert found.data_ptr() != x.data_ptr()


@EACH_NORM
def test_a_batch_gives_what_its_examples_give_alone(norm: str) -> None:
    model, (x, y) = noisy_net(), batch()
    radii = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])  # one per example
    together = pgd(model, x, y, radii, norm=norm, random_start=False)
    alone = [
        pgd(model, x[i : i + 1], y[i : i + 1], float(radii[i]), norm=norm, random_start=False)
        for i in range(len(x))
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)
    assert torch.equal(together[0], x[0])


@EACH_NORM
def test_a_generator_makes_it_deterministic(norm: str) -> None:
    model, (x, y) = noisy_net(), batch()
    state = torch.get_rng_state()
    once, again, other = (
        pgd(model, x, y, 0.3, steps=2, norm=norm, generator=seeded(s)) for s in (3, 3, 4)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert torch.equal(torch.get_rng_state(), state)


@EACH_NORM
def test_the_start_is_uniform_in_the_ball(norm: str) -> None:
    """Half of a d-ball's volume lies within 0.5 ** (1/d) of its radius."""
    x, flat = torch.zeros(4000, 2), nn.Linear(2, 1)
    start = pgd(flat, x, torch.ones(4000), 1.0, norm=norm, steps=1, step_size=0.0, loss=score,
                generator=seeded())  # fmt: skip
    share = (length(start, norm) < 0.5**0.5).float().mean()
    assert abs(share - 0.5) < 0.04  # 5 standard deviations
    assert start.mean(0).abs().max() < 0.05


def test_a_custom_loss_and_output() -> None:
    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"value": x.square().sum(1)}

    def error(output: dict[str, Tensor], y: Tensor) -> Tensor:
        return F.mse_loss(output["value"], y)

    x = torch.full((2, 3), 0.5)
    found = fgsm(Wrapped(), x, torch.zeros(2), 0.1, loss=error)
    assert torch.equal(found, x + 0.1)


# Hidden input: embeddings


@pytest.fixture
def encoder(start: Start) -> EncoderModel:
    return EncoderModel.build(start.architecture, start.tensors)


def run_embeddings(model: EncoderModel, real: Tensor) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        for layer in model.layers:
            x = layer(x, real[:, None, None, :])
        logit: Tensor = model.head(x, real)
        return logit

    return run


def test_embeddings_are_attacked_where_a_token_is(encoder: EncoderModel) -> None:
    ids = torch.randint(1000, 2000, (3, 9), generator=seeded())
    real = torch.arange(9) < torch.tensor([[9], [4], [1]])
    x, y = encoder.embed_tokens(ids), torch.tensor([1.0, 0.0, 1.0])
    options: dict[str, Any] = {"norm": "l2", "loss": F.binary_cross_entropy_with_logits}
    options |= {"steps": 3, "random_start": False}
    run = run_embeddings(encoder, real)

    found = pgd(encoder, x, y, 0.5, mask=real.long(), forward=run, **options)

    assert torch.equal(found[~real], x[~real])
    torch.testing.assert_close(length(found - x, "l2"), torch.full((3,), 0.5))
    assert (F.binary_cross_entropy_with_logits(run(found), y, reduction="none")
            > F.binary_cross_entropy_with_logits(run(x), y, reduction="none")).all()  # fmt: skip
    short = real[1:2, :4]
    unpadded = pgd(
        encoder, x[1:2, :4], y[1:2], 0.5, forward=run_embeddings(encoder, short), **options
    )
    torch.testing.assert_close(unpadded[0], found[1, :4], rtol=0, atol=1e-4)
    assert x.requires_grad
    assert all(p.grad is None for p in encoder.parameters())


def test_padding_may_have_no_gradient() -> None:
    """An attention row without any token is NaN, and no reason to stop."""
    x, real = torch.rand(2, 3), torch.tensor([[True, True, False], [True, False, False]])

    def nan_where_padded(x: Tensor) -> Tensor:
        return (x * torch.where(real, 1.0, torch.nan)).nansum(1, keepdim=True)

    found = fgsm(nn.Identity(), x, torch.ones(2), 0.1, mask=real, loss=score,
                 forward=nan_where_padded)  # fmt: skip
    assert torch.equal(found, torch.where(real, x + 0.1, x))


def test_training_reaches_the_layer_below() -> None:
    table, head = nn.Embedding(10, 6), noisy_net()
    table.weight.grad = None
    optimizer = torch.optim.SGD([*table.parameters(), *head.parameters()], 0.1)
    before = table.weight.detach().clone()
    x = table(torch.tensor([1, 2, 3, 4]))
    adversarial_training_step(head, optimizer, x, torch.tensor([0, 1, 2, 0]), 0.1, norm="l2")
    moved = (table.weight != before).any(1)
    assert moved.tolist() == [False, True, True, True, True] + [False] * 5


# What the common snippet gets wrong


def test_batch_statistics_are_left_alone_in_train_mode_too() -> None:
    model, (x, y) = noisy_net().train(), batch()
    before = {name: value.clone() for name, value in model.named_buffers()}
    held = F.cross_entropy(model.eval()(x), y)  # a graph that a needless write would break
    pgd(model, x, y, 0.1)
    held.backward()
    pgd(model.train(), x, y, 0.1, eval_mode=False)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(module.training for module in model.modules())


def test_flags_come_back_after_an_error_too() -> None:
    model, (x, y) = noisy_net(), batch()
    flags = [m.training for m in model.modules()]
    with pytest.raises(AttackError):
        pgd(model, x, y, 0.1, loss=lambda output, _: output.detach().sum())
    assert [m.training for m in model.modules()] == flags


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(context: Callable[[], Any]) -> None:
    model, (x, y) = noisy_net(), batch()
    expected = pgd(model, x, y, 0.1, generator=seeded())
    with context():
        found = pgd(model, x.clone(), y.clone(), 0.1, generator=seeded())
    assert torch.equal(found, expected)


def test_input_that_requires_grad_gets_none() -> None:
    model, (x, y) = noisy_net(), batch()
    x.requires_grad_()
    found = pgd(model, x, y, 0.1)
    assert x.grad is None
    assert x.requires_grad
    assert not found.requires_grad


def test_a_first_layer_may_work_in_place() -> None:
    model, (x, y) = nn.Sequential(nn.ReLU(inplace=True), noisy_net()), batch()
    x = x - 0.5
    kept = x.clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    adversarial_training_step(model, optimizer, x, y, 0.1, adversarial_share=0.5)
    assert torch.equal(x, kept)


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_input_of_any_precision(dtype: torch.dtype) -> None:
    model, (x, y) = noisy_net().to(dtype), batch()
    x = x.to(dtype)
    rounded = float(x.max()) * (1 - torch.finfo(dtype).eps)  # as after a normalisation
    found = pgd(model, x, y, 0.1, norm="l2", minimum=0.0, maximum=rounded)
    assert found.dtype == dtype
    assert (length((found - x).double(), "l2") <= 0.1 + 4 * torch.finfo(dtype).eps).all()
    assert not torch.equal(found, x)


@EACH_NORM
def test_tiny_and_huge_gradients(norm: str) -> None:
    model, (x, _) = nn.Linear(6, 1), batch()
    expected = fgsm(model, x, torch.ones(5), 0.1, norm=norm, loss=score)
    for factor in (1e-30, 1e30):
        found = fgsm(model, x, torch.full((5,), factor), 0.1, norm=norm, loss=score)
        torch.testing.assert_close(found, expected)


def test_loss_scale_saves_what_float16_loses() -> None:
    model, (x, _) = nn.Linear(6, 1), batch()
    y = torch.full((5,), 1e-9)
    expected = fgsm(model, x, torch.ones(5), 0.1, loss=score)
    with torch.autocast("cpu", torch.float16):
        lost = fgsm(model, x, y, 0.1, loss=score)
        found = fgsm(model, x, y, 0.1, loss=score, loss_scale=2.0**16)
        too_much = fgsm(model, x, y * 1e9, 0.1, loss=score, loss_scale=2.0**30)
    assert torch.equal(lost, x)
    assert torch.equal(found, expected)
    assert torch.equal(too_much, expected)


# Errors

FLAT = nn.Linear(6, 3)
X, Y = batch()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"x": torch.ones(5, 6, dtype=torch.int64)}, r"floating point .*int64 \[5, 6\]"),
        ({"x": torch.tensor(1.0)}, "floating point"),
        ({"x": X * torch.nan}, "NaN"),
        ({"x": X * 255, "minimum": 0, "maximum": 1}, "not within"),
        ({"minimum": 1, "maximum": 0}, "not within"),
        ({"minimum": torch.zeros(4)}, r"minimum \[4\] does not broadcast to x \[5, 6\]"),
        ({"maximum": torch.ones(5, 1, 6)}, "maximum"),
        ({"mask": torch.ones(6)}, "mask"),
        ({"norm": "l1"}, "'l1'"),
        ({"epsilon": -0.1}, "epsilon"),
        ({"epsilon": torch.nan}, "epsilon"),
        ({"epsilon": torch.ones(6)}, "epsilon"),
        ({"step_size": -1.0}, "step_size"),
        ({"steps": 0}, "steps"),
        ({"loss_scale": 0.0}, "loss_scale"),
        ({"loss": lambda output, _: (output * torch.inf).sum()}, "not finite"),
        ({"loss": lambda _, y: y.float().sum()}, "does not depend"),
        ({"loss": lambda _, y: FLAT.weight.sum() + y.sum()}, "does not depend"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], told: str) -> None:
    given = {"model": FLAT, "x": X, "y": Y, "epsilon": 0.1} | changes
    with pytest.raises(AttackError, match=told):
        pgd(**given)


def test_an_empty_batch() -> None:
    model = noisy_net()
    x, y = torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)
    for epsilon in (0.1, torch.zeros(0)):
        assert pgd(model, x, y, epsilon, norm="l2", minimum=0, mask=x.bool()).shape == (0, 6)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters())
    assert adversarial_training_step(model, optimizer, x, y, 0.1) == 0
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


# The training step


def plain_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_step_is_one_ordinary_step_on_the_attacked_batch(
    share: float, dtype: torch.dtype | None
) -> None:
    x, y = batch()
    ours, theirs = plain_net(), plain_net()
    theirs.load_state_dict(ours.state_dict())
    loss = adversarial_training_step(
        ours, torch.optim.SGD(ours.parameters(), 0.5), x, y, 0.2, minimum=0, maximum=1,
        generator=seeded(), adversarial_share=share, autocast_dtype=dtype,
        scaler=torch.amp.GradScaler("cpu", init_scale=4.0),
    )  # fmt: skip

    optimizer = torch.optim.SGD(theirs.parameters(), 0.5)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        found = pgd(theirs, x, y, 0.2, minimum=0, maximum=1, generator=seeded())
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        expected = share * F.cross_entropy(theirs(found), y)
        if share < 1:
            expected = expected + (1 - share) * F.cross_entropy(theirs(x), y)
    expected.backward()
    optimizer.step()
    torch.testing.assert_close(loss, expected.detach())
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], msg=name)


def test_a_scaler_skips_what_overflows() -> None:
    model, (x, y) = plain_net(), batch()
    before = [p.detach().clone() for p in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    adversarial_training_step(
        model, optimizer, x, y, 0.1, scaler=scaler, autocast_dtype=torch.float16
    )
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert scaler.get_scale() == 2.0**59


def test_a_callers_autocast_does_not_keep_old_weights() -> None:
    model, (x, y) = plain_net(), batch()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        adversarial_training_step(model, optimizer, x, y, 0.1)
        inside = model.eval()(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), inside)


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    model, (x, y) = plain_net(), batch()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.5)

    def infinite_in_training(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y) * (torch.inf if model.training else 1)

    with pytest.raises(AttackError, match="training loss"):
        adversarial_training_step(model, optimizer, x, y, 0.1, loss=infinite_in_training)
    with pytest.raises(AttackError, match="adversarial_share"):
        adversarial_training_step(model, optimizer, x, y, 0.1, adversarial_share=0)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@EACH_NORM
def test_cuda_gives_what_the_cpu_gives(norm: str) -> None:
    model, (x, y) = noisy_net(), batch()
    expected = pgd(model, x, y, 0.1, norm=norm, minimum=0, maximum=1, generator=seeded())
    found = pgd(model.cuda(), x.cuda(), y.cuda(), 0.1, norm=norm, minimum=0, maximum=1,
                generator=seeded())  # fmt: skip
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)


# Documentation


def test_the_docstrings_example_runs() -> None:
    assert doctest.testmod(attacks) == (0, 6)


def test_the_readmes_example_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    found = [block for block in blocks if "adversarial_training_step" in block]
    assert found
    for block in found:
        exec(compile(block, str(README), "exec"), {})  # noqa: S102 - our own file
