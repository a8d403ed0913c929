"""`vauban screen`: judge texts offline, by the code that serves requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vauban.errors import MalformedRequest
from vauban.offline import OfflineScreen, as_user
from vauban.policy import Policy
from vauban.types import Action, Verdict

ROWS_PER_BATCH = 256


def screen_file(source: Path, target: Path, policy: Policy, console: Console) -> dict[Action, int]:
    """Write `{"score", "action", "reason"}` rows for `{"text"}` rows, in order.

    `target` appears only when all rows are done.

    :raises MalformedRequest: a row is not a JSON object with a text; names the line.
    """
    rows = list(_texts(source))
    screen = OfflineScreen(policy)
    counts: dict[Action, int] = {}
    scratch = target.with_name(target.name + ".part")
    columns = (
        TextColumn("screening"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar, scratch.open("w", encoding="utf-8") as out:
        task = bar.add_task("", total=len(rows))
        for start in range(0, len(rows), ROWS_PER_BATCH):
            texts = rows[start : start + ROWS_PER_BATCH]
            for verdict in screen([as_user(text) for text in texts]):
                counts[verdict.proposed] = counts.get(verdict.proposed, 0) + 1
                out.write(json.dumps(_row(verdict)) + "\n")
            bar.advance(task, len(texts))
    scratch.replace(target)
    return counts


def _row(verdict: Verdict) -> dict[str, Any]:
    return {
        "score": verdict.score,
        "action": verdict.action.name.lower(),
        "reason": verdict.reason.value,
    }


def _texts(source: Path) -> Iterator[str]:
    with source.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise MalformedRequest(f"{source}, line {number}: not valid JSON") from None
            text = row.get("text") if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise MalformedRequest(f'{source}, line {number}: no "text" that is a string')
            yield text
