"""The policy as `parameters` of a model's config.pbtxt, and back.

Every field is one entry, `injection.block_at { string_value: "0.42" }`, with its value written as
in the YAML file. In Triton these entries are the whole policy: no file and no environment variable
is read beside them, so a repository says by itself what it does. Names in capitals are Triton's
and vauban's own settings, not policy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from vauban.errors import PolicyError
from vauban.policy import Policy
from vauban.policy_sources import parse_value, policy_from_fields

SOURCE = "config.pbtxt"
ENGINE_SECTIONS = ("normalize", "encoder", "injection")
"""What the engine half inside the LLM reads."""
_ONE_LINE = 1_000_000_000


def parameters_of(policy: Policy) -> dict[str, str]:
    """Every field's path and its value as text, in the schema's order.

    :raises PolicyError: the policy asks for what this host can't do.
    """
    require_no_holds(policy)
    return {
        f"{section}.{name}": _written(value)
        for section, fields in policy.model_dump(mode="json").items()
        for name, value in fields.items()
    }


def policy_of(model_config: Mapping[str, Any]) -> Policy:
    """The policy in a model's configuration, as Triton hands it to `initialize`.

    :param model_config: parsed JSON; `parameters` is {name: {"string_value": text}}.
    :raises PolicyError: with the path of every field that is wrong or does not exist.
    """
    nested: dict[str, dict[str, Any]] = {}
    for path, text in texts_of(model_config).items():
        if path.isupper():
            continue
        section, dot, name = path.partition(".")
        if not dot:
            raise PolicyError(f"{path} (from {SOURCE}): a policy field is written section.name")
        nested.setdefault(section, {})[name] = parse_value(text)
    return require_no_holds(policy_from_fields(nested, SOURCE))


def require_no_holds(policy: Policy) -> Policy:
    """:raises PolicyError: a detector is to hold answers, and nobody could release them here."""
    if held_by := policy.output.held_by:
        raise PolicyError(
            f"output.{held_by[0]}: hold is not for Triton, where nobody can release an answer;"
            " write stop"
        )
    return policy


def for_engine(policy: Policy) -> Policy:
    """The policy for the engine half of the LLM, which a client can call past the guard.

    Where callers need a key it is shut to them, unless the operator wrote `injection.unmarked`:
    it knows no keys and no bans, and its answers are not sanitised.
    """
    injection, who = policy.injection, policy.identity
    needs_key = who.keys_file or who.jwks_file or who.trusted_network
    if not needs_key or "unmarked" in injection.model_fields_set:
        return policy
    shut = injection.model_copy(update={"unmarked": "veto"})
    return policy.model_copy(update={"injection": shut})


def engine_fields(policy: Policy) -> dict[str, Any]:
    """The same as vLLM's `additional_config.vauban`. Who explores the model is watched elsewhere,
    and not by each engine."""
    dumped = for_engine(policy).model_dump(mode="json", include=set(ENGINE_SECTIONS))
    return dumped | {"extraction": {"mode": "off"}}


def texts_of(model_config: Mapping[str, Any]) -> dict[str, str]:
    """All parameters of a model's configuration."""
    return {
        name: str(value.get("string_value", ""))
        for name, value in model_config.get("parameters", {}).items()
    }


def _written(value: Any) -> str:
    """Text that reads back as the same value; words stay without quotes."""
    if isinstance(value, str) and parse_value(value) == value:
        return value
    if isinstance(value, (str, list)):
        style = '"' if isinstance(value, str) else None
        dumped: str = yaml.safe_dump(
            value, default_flow_style=True, default_style=style, width=_ONE_LINE
        )
        return dumped.strip()
    return json.dumps(value)
