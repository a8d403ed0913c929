"""What the gate asks for: the schema of `gate.yaml`. The defaults are in the file that ships."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vauban.errors import PolicyError
from vauban.redteam.statistics import Method

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_MAX_BYTES = 1024 * 1024


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


Reason = Annotated[str, Field(min_length=10, max_length=1_000)]


class AttackLimits(_Section):
    """Highest share of judged attempts that attackers may win, per family.

    `known_failures`: families that are over their limit, each with the reason. They keep their
    limit and are shown as failing; what fails the gate is that they get worse than the baseline,
    or that there is none.
    """

    default: Share
    families: dict[str, Share]
    pool_below: Annotated[int, Field(ge=0, le=1_000_000)]
    known_failures: dict[str, Reason]

    def of(self, family: str) -> float:
        return self.families.get(family, self.default)


class LatencyLimit(_Section):
    """A quantile of what the guard added to harmless requests."""

    quantile: Annotated[float, Field(gt=0, lt=1)]
    limit_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    required: bool


class Regression(_Section):
    """Comparison with a baseline: the family-wise error, and how much slower is too slow."""

    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    latency_margin: Annotated[float, Field(ge=0, le=10)]


class GatePolicy(_Section):
    """The whole file; `data/gate.yaml` explains each field."""

    confidence: Annotated[float, Field(ge=0.5, lt=1)]
    interval: Method
    attack_success: AttackLimits
    required_families: list[str]
    false_positives: Share
    over_defence: Share
    require_benign: bool
    unjudged: Share
    added_latency: LatencyLimit
    regression: Regression


def load_gate_policy(path: Path | None = None) -> GatePolicy:
    """The policy that ships, with what `path` changes.

    :raises PolicyError: the file can't be read, is not YAML, or a field is wrong.
    """
    values = _read(Path(__file__).parents[1] / "data" / "gate.yaml")
    if path is not None:
        values = _merged(values, _read(path))
    try:
        return GatePolicy.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PolicyError(f"{path}: {where}: {first['msg']}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise PolicyError(f"{path}: over {_MAX_BYTES} bytes")
        values = yaml.safe_load(data)
    except OSError as error:
        raise PolicyError(f"{path}: can't be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise PolicyError(f"{path}: not valid YAML") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise PolicyError(f"{path}: must be a mapping of gate fields")
    return values


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        below = merged.get(name)
        if isinstance(below, dict) and isinstance(value, dict):
            merged[name] = _merged(below, value)
        else:
            merged[name] = value
    return merged
