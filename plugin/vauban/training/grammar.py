"""Texts from template grammars: own work, in `data/grammar/*.yaml`.

A file names a label, a kind and the rules that make texts:

    label: 1
    kind: indirect_injection
    weight: 2                               # optional: how often it is drawn, default 1
    start:                                  # one of these is drawn, then filled in
      - "{opener} {order}, and {goal}."
    rules:
      opener: ["Note to the assistant:", ...]

    twin:                                   # optional: a harmless grammar of the same form
      kind: benign_tool_output
      rules: {goal: ["call a friend", ...]}  # these stand instead of the file's own
      replace: [order]                      # these become `{harmless}`, which the caller fills
      avoid: [goal2]                        # and no alternative with one of these is used

`{name}` is replaced by a random alternative of the rule `name`, which may hold slots itself; `{{`
and `}}` are braces. `{name^}` starts with a capital letter. Slots that no rule of the file defines
are looked up in `common.yaml`, then among the other files (the `start` of carrier.yaml fills
`{any_carrier}`), then among the slots given by the caller (a benign document, say).
Twins keep a form from standing for an attack: what tells the two apart is what is planted in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vauban.errors import ConfigError

Fill = Callable[[np.random.Generator], str]
Alternatives = Annotated[tuple[str, ...], Field(min_length=1)]

_SLOT = re.compile(r"\{\{|\}\}|\{([a-z][a-z0-9_]*)(\^?)\}")
_MAX_DEPTH = 12


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Twin(_Part):
    kind: str
    weight: float = Field(default=1.0, gt=0.0)
    rules: dict[str, Alternatives] = {}
    replace: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()


class _File(_Part):
    label: int = Field(ge=0, le=1)
    kind: str
    start: Alternatives
    weight: float = Field(default=1.0, gt=0.0)
    rules: dict[str, Alternatives] = {}
    twin: _Twin | None = None


@dataclass(frozen=True, slots=True)
class Grammar:
    """One file's rules; `text` draws from them."""

    name: str
    label: int
    kind: str
    start: Sequence[str]
    rules: Mapping[str, Sequence[str]]
    given: Mapping[str, Fill]
    weight: float = 1.0

    def text(self, random: np.random.Generator) -> str:
        return self._fill(self.start[int(random.integers(len(self.start)))], random, _MAX_DEPTH)

    def unknown_slots(self) -> set[str]:
        """Slots that nothing fills."""
        return _reachable(self.start, self.rules) - self.rules.keys() - self.given.keys()

    def _fill(self, template: str, random: np.random.Generator, depth: int) -> str:
        if not depth:
            raise ConfigError(f"grammar {self.name}: a rule fills itself")

        def one(match: re.Match[str]) -> str:
            name, capital = match[1], match[2]
            if not name:
                return match[0][0]
            if name in self.rules:
                alternatives = self.rules[name]
                chosen = alternatives[int(random.integers(len(alternatives)))]
                value = self._fill(chosen, random, depth - 1)
            else:
                value = self.given[name](random)
            return value[:1].upper() + value[1:] if capital else value

        return _SLOT.sub(one, template)


def shipped() -> Path:
    """Directory of the grammars that come with the package."""
    return Path(str(files("vauban") / "data" / "grammar"))


def load_grammars(given: Mapping[str, Fill], directory: Path | None = None) -> list[Grammar]:
    """All grammars of a directory, by name.

    :raises ConfigError: a file does not parse, or has a slot that nothing fills.
    """
    directory = directory or shipped()
    common: dict[str, Sequence[str]] = {}
    if (directory / "common.yaml").is_file():
        common = dict(_read(directory / "common.yaml", common=True).rules)
    read = {p: _read(p) for p in sorted(directory.glob("*.yaml")) if p.name != "common.yaml"}
    common.update((f"any_{path.stem}", file.start) for path, file in read.items())
    grammars = []
    for path, file in read.items():
        rules = {**common, **file.rules}
        made = [Grammar(path.stem, file.label, file.kind, file.start, rules, given, file.weight)]
        if file.twin:
            made.append(_twin(made[0], file.twin))
        for grammar in made:
            if unknown := grammar.unknown_slots():
                raise ConfigError(f"{path}: nothing fills {', '.join(sorted(unknown))}")
        grammars += made
    return grammars


def _twin(grammar: Grammar, twin: _Twin) -> Grammar:
    avoided = set(twin.avoid)
    rules: Mapping[str, Sequence[str]] = {
        **grammar.rules,
        **dict.fromkeys(twin.replace, ("{harmless}",)),
        **twin.rules,
    }
    while True:
        kept = {
            name: [t for t in alternatives if not _slots(t) & avoided]
            for name, alternatives in rules.items()
            if name not in avoided
        }
        emptied = {name for name, alternatives in kept.items() if not alternatives}
        if not emptied:
            break
        avoided |= emptied
        rules = kept
    start = [template for template in grammar.start if not _slots(template) & avoided]
    name, label = grammar.name + "_twin", 1 - grammar.label
    return Grammar(name, label, twin.kind, start, kept, grammar.given, twin.weight)


def _slots(template: str) -> set[str]:
    return {match[1] for match in _SLOT.finditer(template) if match[1]}


def _reachable(start: Sequence[str], rules: Mapping[str, Sequence[str]]) -> set[str]:
    """Slots that texts drawn from `start` may need."""
    found: set[str] = set()
    waiting = list(start)
    while waiting:
        fresh = _slots(waiting.pop()) - found
        found |= fresh
        waiting += [template for name in fresh for template in rules.get(name, ())]
    return found


def _read(path: Path, *, common: bool = False) -> _File:
    try:
        return _parsed(path.read_text(encoding="utf-8"), common=common)
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{path}: not a grammar ({error})") from error


@lru_cache(maxsize=64)
def _parsed(text: str, *, common: bool) -> _File:
    """Kept, as the files that ship take 2.5 s to parse and every mixture reads all of them."""
    raw = yaml.safe_load(text)
    if common and isinstance(raw, dict):
        raw = {"label": 0, "kind": "common", "start": ("",), **raw}
    return _File.model_validate(raw)
