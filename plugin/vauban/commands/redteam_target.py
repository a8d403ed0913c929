"""`vauban redteam target`: a vLLM with a target that can lose, guarded as far as asked."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from rich.console import Console

from vauban.commands.local_server import LocalServer, free_port, running, terminable
from vauban.commands.serve import LOOPBACK, server_command
from vauban.errors import RedTeamError
from vauban.policy_output import OUTPUT_DETECTORS
from vauban.policy_sources import POLICY_FILE_VARIABLE
from vauban.scripted import ARCHITECTURE, answer_to
from vauban.standin import MAX_MODEL_LEN, make_standin

if TYPE_CHECKING:
    from vauban.commands.redteam_front import Answering


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model to attack. `note`: what readers of a result must know of it. `flags`: vLLM's."""

    note: str
    context_tokens: int
    max_answer_tokens: int
    flags: tuple[str, ...] = ()


SCRIPTED, TRAINED = "scripted", "trained"
_TRAINED_ANSWER_TOKENS = 256
_GREEDY = json.dumps({"temperature": 0.0, "max_new_tokens": _TRAINED_ANSWER_TOKENS})
MODELS: Mapping[str, ModelFacts] = {
    SCRIPTED: ModelFacts(
        note="The target is scripted, not a language model: it obeys the last instruction that it"
        " recognises. The numbers say what reaches a model, not how well a real one resists.",
        context_tokens=MAX_MODEL_LEN,
        max_answer_tokens=MAX_MODEL_LEN,
    ),
    TRAINED: ModelFacts(
        note="The target is a small trained stand-in, not a model that anybody uses: it does small"
        " tasks, and was trained to obey the last order that it reads. The numbers say what reaches"
        " a model and takes effect there, not how well a real one resists.",
        context_tokens=4_096,
        max_answer_tokens=_TRAINED_ANSWER_TOKENS,
        flags=("--override-generation-config", _GREEDY),
    ),
}
"""By the names that they are served as."""
_STAGES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "classifier": {"injection": ("mode",)},
    "normalise": {"normalize": ("mode",)},
    "sandwich": {"sandwich": ("mode",)},
    "answers": {
        "output": (*OUTPUT_DETECTORS, "place_canary"),
        "logprobs": ("mode",),
        "tools": ("mode",),
    },
    "callers": {"extraction": ("mode",), "response": ("mode",)},
}
"""Each by the fields that switch it off, in their sections of the policy."""
GUARDS: Mapping[str, tuple[str, ...]] = {
    "on": (),
    "off": tuple(_STAGES),
    "normalise": ("classifier", "sandwich", "answers", "callers"),
    "sandwich": ("classifier", "normalise", "answers", "callers"),
    "classifier": ("normalise", "sandwich", "answers", "callers"),
}
"""The stages that each setting switches off; the last three have one stage alone."""


def mark(model: str) -> str:
    """A second name of each of `MODELS`, by which a result knows that the target was ours: anybody
    may call a model of theirs `trained`."""
    return f"vauban-redteam-target/{model}"


def target_flags(guard: str, model: str) -> list[str]:
    """vLLM's flags for one of `MODELS` under one of `GUARDS`."""
    flags = [
        "--served-model-name", model, mark(model), "--dtype", "float32", "--enforce-eager",
        "--max-model-len", str(MODELS[model].context_tokens),
        "--kv-cache-memory-bytes", str(256 * 1024 * 1024),
        "--additional-config.vauban.answer.details", "true", *MODELS[model].flags,
    ]  # fmt: skip
    for section, fields in switched_off(guard).items():
        for name, value in fields.items():
            flags += [f"--additional-config.vauban.{section}.{name}", value]
    return flags


def switched_off(guard: str) -> dict[str, dict[str, Any]]:
    """The policy's sections of one of `GUARDS`, as far as it switches anything off."""
    return {
        section: dict.fromkeys(fields, "off")
        for stage in GUARDS[guard]
        for section, fields in _STAGES[stage].items()
    }


@contextmanager
def local_target(
    guard: str,
    model: str,
    port: int | None = None,
    policy_file: Path | None = None,
    *,
    engine: bool = True,
) -> Iterator[LocalServer]:
    """The server, started and ready; it is stopped on the way out.

    :param engine: with vLLM; without it only the front half (see `redteam_front`).
    :raises ConfigError: the port is taken, or the policy is wrong.
    :raises ServerFailed: it did not start.
    """
    port = free_port(port)
    with tempfile.TemporaryDirectory(prefix="vauban-target-", ignore_cleanup_errors=True) as place:
        if engine:
            flags = [*target_flags(guard, model), "--host", LOOPBACK, "--port", str(port)]
            directory = str(_directory(model, Path(place)))
            command, environ = server_command(directory, flags, policy_file)
        else:
            command, environ = _front_only(guard, model, port, policy_file), dict(os.environ)
        environ |= {"TMPDIR": place, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        environ["XDG_STATE_HOME"] = place
        # vLLM is 2,600 files: compiling them again in every process takes most of a start.
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        with running(command, environ, port, Path(place) / "server.log") as server:
            with httpx.Client(trust_env=False) as client:
                server.wait_ready(lambda address: _answers(client, address))
            yield server


def _directory(model: str, place: Path) -> Path:
    """Where the weights are. The scripted model has none that matter: they are made in `place`."""
    if model == SCRIPTED:
        return make_standin(place / "model", ARCHITECTURE)
    from vauban.training.instruct_answer import SHIPPED_TARGET  # torch is heavy

    return SHIPPED_TARGET


def answering(model: str, place: Path) -> Answering:
    """One of `MODELS` without an engine; `place` is an empty directory."""
    from vauban.commands.redteam_front import Answering
    from vauban.training.instruct_answer import Answerer

    directory, about = _directory(model, place), MODELS[model]
    answer = (lambda prompt, _: answer_to(prompt)) if model == SCRIPTED else Answerer(directory)
    return Answering(
        model, mark(model), directory, about.context_tokens, answer, about.max_answer_tokens
    )


def check_guard(guard: str) -> None:
    """:raises RedTeamError: it is none of `GUARDS`."""
    if guard not in GUARDS:
        raise RedTeamError(f"--guard must be one of: {', '.join(GUARDS)}")


def serve_target(
    console: Console,
    guard: str,
    model: str,
    port: int | None,
    policy_file: Path | None,
    *,
    engine: bool = True,
) -> None:
    """Run it until Ctrl-C.

    :param engine: with vLLM; without it only the front half (see `redteam_front`).
    """
    check_guard(guard)
    console.print(MODELS[model].note, highlight=False)
    if not engine:
        _serve_front_only(console, guard, model, port, policy_file)
        return
    console.print("Starting vLLM, which takes 35 to 120 s on a CPU")
    with terminable(), local_target(guard, model, port, policy_file) as server:
        off = ", ".join(GUARDS[guard]) or "nothing"
        console.print(f"Ready at {server.url}, switched off: {off}. Ctrl-C ends it.")
        try:
            server.wait_ended()
        except KeyboardInterrupt:
            console.print("stopped")


def _front_only(guard: str, model: str, port: int, policy_file: Path | None) -> list[str]:
    command = [sys.executable, "-m", "vauban", "redteam", "target", "--no-engine"]
    command += ["--guard", guard, "--model", model, "--port", str(port)]
    return [*command, *(["--policy", str(policy_file)] if policy_file else [])]


def _answers(client: httpx.Client, address: str) -> bool:
    try:
        return client.get(address).is_success
    except httpx.HTTPError:
        return False


def _serve_front_only(
    console: Console, guard: str, model: str, port: int | None, policy_file: Path | None
) -> None:
    from vauban.commands.redteam_front import serve_front_only

    port = free_port(port)
    if policy_file is not None:
        os.environ[POLICY_FILE_VARIABLE] = str(policy_file.resolve())
    policy = switched_off(guard)
    policy["answer"] = {"details": True}
    policy["audit"] = {"log": "off"}
    with tempfile.TemporaryDirectory(prefix="vauban-target-", ignore_cleanup_errors=True) as place:
        asked = answering(model, Path(place))
        console.print(f"Without an engine, at http://{LOOPBACK}:{port}. Ctrl-C ends it.")
        serve_front_only(asked, policy, port)
