"""Run PyRIT's own attacks; executed by the interpreter of PyRIT's environment, not imported.

    python pyrit_driver.py PLAN.json REPORT.jsonl

The plan names the endpoint and the attempts (`pyrit_run.py` writes it). Each attempt goes through
a target of its own whose header carries the attempt's number, so that the relay can tell which
requests belong to it. The report has one line for each attempt, and a last one that says it is
complete; no text is in it. PyRIT keeps its own records in SQLite, in memory.
"""

from __future__ import annotations

import asyncio
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

ATTEMPT_HEADER = "x-redteam-attempt"


def main(plan_path: str, report_path: str) -> None:
    plan = json.loads(Path(plan_path).read_text(encoding="utf-8"))
    with Path(report_path).open("w", encoding="utf-8") as report:
        asyncio.run(run_all(plan, report))


async def run_all(plan: dict[str, Any], report: TextIO) -> None:
    from pyrit.setup import initialize_pyrit_async

    await initialize_pyrit_async(
        "InMemory", load_defaults=False, env_files=[], silent=True,
        seed=plan["seed"],
    )  # fmt: skip
    write(report, {"type": "start", "pyrit": version("pyrit")})
    places = asyncio.Semaphore(plan["parallel"])

    async def one(attempt: dict[str, Any]) -> None:
        async with places:
            write(report, await run(plan, attempt))

    await asyncio.gather(*map(one, expanded(plan)))
    write(report, {"type": "end"})


def expanded(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The attempts, those by PyRIT's jailbreak templates included."""
    from pyrit.datasets import TextJailBreak

    attempts = list(plan["attempts"])
    if plan["jailbreaks"]:
        names = sorted(TextJailBreak.get_jailbreak_templates())
        step = max(1, len(names) // plan["jailbreaks"])
        objectives = plan["objectives"]
        for place, name in enumerate(names[::step][: plan["jailbreaks"]]):
            objective = objectives[place % len(objectives)]
            attempts.append(
                {
                    "name": "jailbreak", "number": f"j{place}", "template": name,
                    "converters": [], **objective,
                }
            )  # fmt: skip
    return attempts


async def run(plan: dict[str, Any], attempt: dict[str, Any]) -> dict[str, Any]:
    """One attempt; whatever it dies of is told by its name only."""
    line = {"type": "attempt", "name": attempt["name"], "number": attempt["number"]}
    try:
        result = await execute(plan, attempt)
    except Exception as error:  # noqa: BLE001 - one attempt must not end the others
        return {**line, "outcome": "error", "error": type(error).__name__}
    if result is None:
        return {**line, "outcome": "skipped", "error": ""}
    return {
        **line, "outcome": str(result.outcome.value), "error": result.error_type or "",
        "turns": result.executed_turns,
    }  # fmt: skip


async def execute(plan: dict[str, Any], attempt: dict[str, Any]) -> Any:
    from pyrit.executor.attack import (
        AttackConverterConfig,
        AttackScoringConfig,
        MultiPromptSendingAttack,
        PromptSendingAttack,
    )
    from pyrit.models import Message
    from pyrit.prompt_normalizer import ConverterConfiguration
    from pyrit.score import SubStringScorer

    chain = converters(attempt)
    if chain is None:
        return None
    common = {
        "objective_target": chat_target(plan, attempt["number"]),
        "attack_scoring_config": AttackScoringConfig(
            objective_scorer=SubStringScorer(substring=attempt["marker"])
        ),
        "attack_converter_config": AttackConverterConfig(
            request_converters=ConverterConfiguration.from_converters(converters=chain)
        ),
    }
    system = attempt.get("system")
    prepended = [Message.from_system_prompt(system)] if system else None
    if attempt.get("attacker"):
        return await by_attacker(plan, attempt, common, prepended)
    if attempt.get("script") is not None:
        messages = [Message.from_prompt(prompt=text, role="user") for text in attempt["script"]]
        return await MultiPromptSendingAttack(**common).execute_async(
            objective=attempt["objective"], user_messages=messages
        )
    return await PromptSendingAttack(**common).execute_async(
        objective=attempt["objective"], prepended_conversation=prepended
    )


async def by_attacker(
    plan: dict[str, Any], attempt: dict[str, Any], common: dict[str, Any], prepended: Any
) -> Any:
    """Several turns, each written by a real attacker model."""
    from pyrit.executor.attack import AttackAdversarialConfig, RedTeamingAttack
    from pyrit.prompt_target import OpenAIChatTarget

    adversary = OpenAIChatTarget(
        endpoint=plan["attacker"], model_name=plan["attacker_model"], api_key=plan["attacker_key"]
    )
    attack = RedTeamingAttack(
        attack_adversarial_config=AttackAdversarialConfig(target=adversary), max_turns=5, **common
    )
    return await attack.execute_async(
        objective=attempt["objective"], prepended_conversation=prepended
    )


def converters(attempt: dict[str, Any]) -> list[Any] | None:
    """The attempt's converters in order; None for a template that wants more than a prompt."""
    import pyrit.converter as converter
    from pyrit.datasets import TextJailBreak

    if template := attempt.get("template"):
        try:
            jailbreak = TextJailBreak(template_file_name=template)
            jailbreak.get_jailbreak(prompt="x")
        except ValueError:
            return None
        return [converter.TextJailbreakConverter(jailbreak_template=jailbreak)]
    return [getattr(converter, name)(**options) for name, options in attempt["converters"]]


def chat_target(plan: dict[str, Any], number: str) -> Any:
    from pyrit.prompt_target import OpenAIChatTarget

    return OpenAIChatTarget(
        endpoint=plan["endpoint"], model_name=plan["model"], api_key="none", temperature=0.0,
        seed=plan["seed"], extra_body_parameters={"max_tokens": plan["max_tokens"]},
        headers=json.dumps({ATTEMPT_HEADER: number}),
    )  # fmt: skip


def write(report: TextIO, line: dict[str, Any]) -> None:
    report.write(json.dumps(line) + "\n")
    report.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
