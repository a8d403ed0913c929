"""Where policy values come from, and how they are explained.

Sources, weakest first: defaults < YAML file (`VAUBAN_POLICY`) < environment
(`VAUBAN_INJECTION__BLOCK_AT=0.9`) < server flags (`--additional-config.vauban.injection.block_at
0.9`). A wrong value raises `PolicyError` with the field's path, what was given and what is
allowed, and the server does not start.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from vauban.errors import PolicyError
from vauban.policy import Policy
from vauban.types import Mode, Origin

ENV_PREFIX = "VAUBAN_"
ENV_DELIMITER = "__"
POLICY_FILE_VARIABLE = "VAUBAN_POLICY"
FLAG_PREFIX = "--additional-config.vauban."
# A wrong value there may hold a password that was put in the wrong place: it is not repeated.
SECRET_PATHS = ("state.", "tools.store")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of a truth value: `off` and `on` are words, and modes of a policy."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy and, per field path, the source that set it (`default` where none did)."""

    policy: Policy
    sources: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PolicyField:
    """One row of the explanation: everything an operator needs to set the field."""

    path: str
    value: Any
    default: Any
    source: str
    unit: str
    allowed: str
    description: str

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.path.upper().replace(".", ENV_DELIMITER)


def load_policy(
    flags: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    file: Path | str | None = None,
) -> LoadedPolicy:
    """Merge all sources into one checked policy.

    :param flags: the `vauban` part of vLLM's `additional_config`, nested.
    :param environ: default `os.environ`.
    :param file: YAML file; default: what `VAUBAN_POLICY` names.
    :raises PolicyError: naming every wrong field, its source and what is allowed.
    """
    environ = os.environ if environ is None else environ
    file = file or environ.get(POLICY_FILE_VARIABLE)
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if file:
        layers.append((f"file {file}", _read_yaml(Path(file))))
    layers.append(("environment", _read_environment(environ)))
    layers.append(("server flag", flags or {}))

    return _checked(layers)


def policy_from_fields(fields: Mapping[str, Any], source: str) -> Policy:
    """A policy from one source alone, for a host that keeps all of it in one place.

    :param fields: nested by section.
    :param source: what errors call it.
    :raises PolicyError: naming every wrong field and what is allowed.
    """
    return _checked([(source, fields)]).policy


def parse_value(text: str) -> Any:
    """A value written as in the YAML file; text that is no YAML stands for itself."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        return text


def _checked(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> LoadedPolicy:
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, layer in layers:
        _merge(merged, layer, source, sources, ())
    try:
        policy = Policy.model_validate(merged)
    except ValidationError as error:
        raise PolicyError(_describe(error, sources)) from None
    return LoadedPolicy(policy, sources)


def explain(loaded: LoadedPolicy) -> list[PolicyField]:
    """Every field of the policy with its value, its source and what is allowed."""
    rows = []
    for section_name, section in Policy.model_fields.items():
        section_type = section.annotation
        if not (isinstance(section_type, type) and issubclass(section_type, BaseModel)):
            continue
        values = getattr(loaded.policy, section_name)
        for name, info in section_type.model_fields.items():
            path = f"{section_name}.{name}"
            extra = info.json_schema_extra
            rows.append(
                PolicyField(
                    path=path,
                    value=getattr(values, name),
                    default=info.get_default(call_default_factory=True),
                    source=_source(loaded.sources, path),
                    unit=str(extra.get("unit", "")) if isinstance(extra, dict) else "",
                    allowed=_allowed(info),
                    description=info.description or "",
                )
            )
    return rows


def shown(value: Any) -> str:
    """A policy value as an operator would write it in YAML."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {shown(item)}" for name, item in value.items()) + "}"
    if isinstance(value, BaseModel):
        return shown({name: getattr(value, name) for name in value.model_fields_set})
    return str(value)


def _source(sources: Mapping[str, str], path: str) -> str:
    """What set a field; of one with parts of their own, what set the last of these."""
    within = [source for known, source in sources.items() if known.startswith(f"{path}.")]
    return sources.get(path, within[-1] if within else "default")


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"policy file {path} can't be read: {error}") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise PolicyError(f"policy file {path}{line}: not valid YAML") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise PolicyError(f"policy file {path}: expected a mapping of sections at the top")
    return data


def _read_environment(environ: Mapping[str, str]) -> Mapping[str, Any]:
    """`VAUBAN_A__B=value` becomes {"a": {"b": value}}; values are read as YAML scalars or lists."""
    found: dict[str, Any] = {}
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX) or ENV_DELIMITER not in variable:
            continue
        *parents, leaf = variable[len(ENV_PREFIX) :].lower().split(ENV_DELIMITER)
        value = parse_value(environ[variable])
        node = found
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise PolicyError(f"environment variable {variable}: {parent} is not a section")
        node[leaf] = value
    return found


def _merge(
    into: dict[str, Any],
    layer: Mapping[str, Any],
    source: str,
    sources: dict[str, str],
    path: tuple[str, ...],
) -> None:
    for name, value in layer.items():
        here = (*path, str(name))
        if isinstance(value, Mapping):
            below = into.setdefault(name, {})
            if not isinstance(below, dict):
                below = into[name] = {}
            _merge(below, value, source, sources, here)
        else:
            into[name] = value
            sources[".".join(here)] = source


def _describe(error: ValidationError, sources: Mapping[str, str]) -> str:
    lines = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        source = next((s for p, s in sources.items() if p == path or p.startswith(path + ".")), "")
        known = _field_at(item["loc"])
        if item["type"] == "extra_forbidden":
            detail = "there is no such field; `vauban policy --explain` lists all of them"
        else:
            shown = not f"{path}.".startswith(SECRET_PATHS)
            detail = item["msg"] + (f" (given: {item.get('input')!r})" if shown else "")
            if known is not None:
                detail += f"; allowed: {_allowed(known)}"
        lines.append(f"{path}{f' (from {source})' if source else ''}: {detail}")
    return "policy refused:\n  " + "\n  ".join(lines)


def _field_at(location: tuple[int | str, ...]) -> FieldInfo | None:
    fields: Mapping[str, FieldInfo] = Policy.model_fields
    found: FieldInfo | None = None
    for part in location:
        if not isinstance(part, str) or part not in fields:
            break
        found = fields[part]
        below = found.annotation
        is_section = isinstance(below, type) and issubclass(below, BaseModel)
        fields = below.model_fields if is_section else {}  # type: ignore[union-attr]
    return found


def _allowed(info: FieldInfo) -> str:
    """The type and bounds of a field, in words."""
    bounds = []
    for item in info.metadata:
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            if (limit := getattr(item, name, None)) is not None:
                bounds.append(f"{sign} {limit}")
        if (longest := getattr(item, "max_length", None)) is not None:
            bounds.append(f"at most {longest} long")
        if (pattern := getattr(item, "pattern", None)) is not None:
            bounds.append(f"matching {pattern}")
    return " ".join([_type_words(info.annotation), ", ".join(bounds)]).strip()


def _type_words(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        return _type_words(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return " | ".join(str(value) for value in get_args(kind))
    if get_origin(kind) is tuple:
        return f"list of {_type_words(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return f"mapping to {_type_words(get_args(kind)[1])}"
    if arguments := get_args(kind):
        return " | ".join(_type_words(argument) for argument in arguments)
    if isinstance(kind, type) and issubclass(kind, (Mode, Origin)):
        return " | ".join(member.value for member in kind)
    words = {int: "integer", float: "number", str: "text", bool: "true | false", Path: "path"}
    return words.get(kind, "none" if kind is type(None) else getattr(kind, "__name__", str(kind)))
