"""`vauban train`: make weights. The encoder's need `pip install 'vauban[train]'` and no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vauban.commands.progress import tracking
from vauban.detectors.checkpoint import shipped
from vauban.errors import VaubanError

if TYPE_CHECKING:
    from vauban.training.fit import FitConfig

app = typer.Typer(help="Train the encoder, and a model to attack.", no_args_is_help=True)

Data = Annotated[Path, typer.Option(help="Directory: train and dev (and dev_ood) .jsonl[.gz].")]
Seed = Annotated[int, typer.Option(min=0)]

_INIT = typer.Option(help="Checkpoint to go on from, or `shipped`; default: the base model.")
_FGSM = typer.Option(min=0.0, max=1.0, help="Share of the run after which FGSM is on; 1: never.")
_HELD_OUT = typer.Option(help="Leave out sources whose name has this; repeatable.")
_DISTILL = typer.Option(min=0.0, max=100.0, help="How firmly embeddings are held.")
_HIDDEN = typer.Option(min=0.0, max=1.0, help="Largest share of a window's words to hide.")
_CALMED = typer.Option(
    min=0.0, max=1.0, help="Share of texts that get the words that calm the model most."
)
_CALMED_EACH = typer.Option(min=0.0, max=1.0, help="Repeatable, with each learning rate.")
_WORKERS = typer.Option(min=0, help="Processes that draw examples ahead.")
_DEVICE = typer.Option(help="torch device, or auto.")
_HARD = typer.Option(min=0.0, max=1.0, help="Share after which only hard examples count; 1: never.")
_MINUTES = typer.Option(min=0.01, help="Train so long; 5 on a GPU.")
_TARGET_BATCH = typer.Option(min=256, help="Of a batch, padding counted; 4096 suits a CPU.")
_BATCH = typer.Option(min=512, help="Of a batch, padding counted; 65536 suits a GPU.")


@app.command()
def injection(
    data: Data,
    out: Annotated[Path, typer.Option(help="Checkpoint directory; a broken-off run goes on.")],
    init: Annotated[str | None, _INIT] = None,
    examples: Annotated[int, typer.Option(min=1, help="Texts to show.")] = 98_304,
    seed: Seed = 0,
    learning_rate: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1e-4,
    window_tokens: Annotated[int, typer.Option(min=16, max=512)] = 128,
    adversarial_after: Annotated[float, _FGSM] = 1.0,
    hold_out: Annotated[list[str] | None, _HELD_OUT] = None,
    distill_weight: Annotated[float, _DISTILL] = 6.0,
    word_dropout: Annotated[float, _HIDDEN] = 0.4,
    adversarial_words: Annotated[float, _CALMED] = 0.0,
    hard_after: Annotated[float, _HARD] = 0.3,
    batch_tokens: Annotated[int, _BATCH] = 3072,
    workers: Annotated[int, _WORKERS] = 0,
    device: Annotated[str, _DEVICE] = "auto",
) -> None:
    """Fine-tune the injection head and the upper layers, calibrate, write int8 weights."""
    from vauban.training.base import load_start  # torch is heavy; --help stays quick
    from vauban.training.fit import FitConfig
    from vauban.training.run import train_injection

    console = Console(stderr=True)
    config = FitConfig(
        examples=examples,
        seed=seed,
        learning_rate=learning_rate,
        head_learning_rate=round(5 * learning_rate, 12),
        window_tokens=window_tokens,
        overlap_tokens=window_tokens * 5 // 16,
        adversarial_after=adversarial_after,
        distill_weight=distill_weight,
        word_dropout=word_dropout,
        adversarial_words=adversarial_words,
        hard_after=hard_after,
        batch_tokens=batch_tokens,
    )
    with _reported(console), tracking(console) as track:
        final = train_injection(
            load_start(seed, init=_checkpoint(init)),
            data,
            out,
            config,
            track,
            device=device,
            workers=workers,
            hold_out=hold_out or [],
        )
    typer.echo(f"{out}: block_at {final.block_at:.4f}, flag_at {final.flag_at:.4f}")


@app.command()
def average(
    checkpoints: Annotated[list[Path], typer.Argument(help="Directories of trained checkpoints.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Checkpoint directory.")],
) -> None:
    """Average the weights of several runs (a "model soup"), and calibrate the mean.

    With one checkpoint: calibrate it anew, on other data or for another vauban.
    """
    from vauban.training.base import load_start  # torch is heavy; --help stays quick
    from vauban.training.run import average as mean_of

    console = Console(stderr=True)
    with _reported(console), tracking(console) as track:
        final = mean_of(checkpoints, load_start(0), data, out, track)
    typer.echo(f"{out}: block_at {final.block_at:.4f}, flag_at {final.flag_at:.4f}")


@app.command()
def validate(
    data: Data,
    learning_rate: Annotated[
        list[float] | None, typer.Option(min=0.0, max=1.0, help="Repeatable: one setting each.")
    ] = None,
    adversarial_words: Annotated[list[float] | None, _CALMED_EACH] = None,
    init: Annotated[
        str | None, typer.Option(help="Checkpoint to start from, or `shipped`.")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Texts to show per fit.")] = 4096,
    seed: Seed = 0,
    batch_tokens: Annotated[int, _BATCH] = 3072,
    workers: Annotated[int, _WORKERS] = 0,
    device: Annotated[str, _DEVICE] = "auto",
) -> None:
    """Leave one source out: what settings do on attacks of sources they were not fitted on."""
    from vauban.detectors.windows import WindowTokenizer  # torch is heavy; --help stays quick
    from vauban.policy import EncoderPolicy
    from vauban.training.base import load_start
    from vauban.training.fit import FitConfig
    from vauban.training.labelled import labelled_rows
    from vauban.training.reader import Reader
    from vauban.training.run import DEV, DEV_OOD, TRAIN, data_files, without_lexical
    from vauban.training.validate import Fold, leave_one_out

    console = Console(stderr=True)
    configs = [
        FitConfig(
            examples=examples,
            seed=seed,
            learning_rate=rate,
            head_learning_rate=5 * rate,
            adversarial_words=share,
            batch_tokens=batch_tokens,
        )
        for rate in learning_rate or [1e-4]
        for share in adversarial_words or [0.0]
    ]

    def report(fold: Fold) -> None:
        typer.echo(
            f"{fold.source}\t{_setting(configs[fold.setting])}\tAUC {fold.auc:.3f}"
            f"\trecall at 1% {fold.recall:.3f}\t{fold.attacks} attacks"
        )

    with _reported(console):
        reader = Reader(WindowTokenizer.load(EncoderPolicy()))
        start = without_lexical(load_start(seed, init=_checkpoint(init)))
        files = data_files(data)
        rows = list(labelled_rows(files[TRAIN]))
        benign = list(labelled_rows(files.get(DEV_OOD, files[DEV])))
        folds = leave_one_out(
            start, rows, benign, reader, configs, report, device=device, workers=workers
        )
    for setting, config in enumerate(configs):
        recalls = [fold.recall for fold in folds if fold.setting == setting]
        typer.echo(f"mean\t{_setting(config)}\trecall at 1% {sum(recalls) / len(recalls):.3f}")


@app.command()
def extraction(
    data: Data,
    out: Annotated[Path, typer.Option(help="Directory of the reference; texts' embeddings too.")],
    people: Annotated[int, typer.Option(min=200, help="Honest people to simulate.")] = 3000,
    seed: Seed = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that simulate.")] = 1,
) -> None:
    """Fit what honest callers look like, for the extraction detector, on simulated people."""
    from vauban import __version__
    from vauban.policy import EncoderPolicy
    from vauban.training.extraction import embedder, fit_reference
    from vauban.training.provenance import file_sha256
    from vauban.training.traffic_texts import texts
    from vauban.training.traffic_world import worlds

    with tracking(Console(stderr=True)) as track:
        found = texts(data, seed)
        out.mkdir(parents=True, exist_ok=True)
        embed = embedder(EncoderPolicy(), partial(track, "embedding"))
        world = worlds(found, embed, out / "texts.npy", seed)["fit"]
        files = {path.name: file_sha256(path) for path in sorted(data.glob("*.jsonl*"))}
        about = {"data": files, "seed": seed, "vauban": __version__}
        fitted = fit_reference(world, people, seed, about, partial(track, "people"), workers)
        fitted.save(out)
    typer.echo(f"{out}: reference of {people} simulated people")


@app.command()
def target(
    out: Annotated[Path, typer.Option(help="Directory of the checkpoint.")],
    init: Annotated[Path | None, typer.Option(help="A trained target to go on from.")] = None,
    minutes: Annotated[float | None, _MINUTES] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Train so long instead.")] = None,
    seed: Seed = 0,
    workers: Annotated[int, _WORKERS] = 0,
    device: Annotated[str, _DEVICE] = "auto",
    batch_tokens: Annotated[int, _TARGET_BATCH] = 32_768,
    learning_rate: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.5e-3,
) -> None:
    """Train the small stand-in target from scratch: it obeys the last order that it sees."""
    from vauban.training.instruct import InstructConfig, train_target  # torch is heavy

    console = Console(stderr=True)
    config = InstructConfig(
        minutes=minutes,
        steps=steps,
        seed=seed,
        batch_tokens=batch_tokens,
        learning_rate=learning_rate,
    )
    with _reported(console):
        train_target(
            out,
            config,
            device=device,
            workers=workers,
            init=init,
            say=lambda line: console.print(line, highlight=False, markup=False),
        )
    typer.echo(f"{out}: trained target")


def _setting(config: FitConfig) -> str:
    return f"learning rate {config.learning_rate:g}, words {config.adversarial_words:g}"


def _checkpoint(init: str | None) -> Path | None:
    if init == "shipped":
        return shipped()
    return Path(init) if init else None


@contextmanager
def _reported(console: Console) -> Iterator[None]:
    """An error of ours is one red line, and status 2."""
    try:
        yield
    except VaubanError as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        raise typer.Exit(2) from error
