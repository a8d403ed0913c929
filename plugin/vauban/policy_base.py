"""What every section of the policy is made of."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def field(default: Any, description: str, unit: str = "", **bounds: Any) -> Any:
    """One tunable: what it does, its unit, its bounds."""
    extra: dict[str, Any] = {"unit": unit} if unit else {}
    return Field(default=default, description=description, json_schema_extra=extra, **bounds)


class Section(BaseModel):
    """A named group of tunables; immutable, and nothing unknown in it."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
