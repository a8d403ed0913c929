"""What a served chat template does with system messages, found by rendering probes.

Templates differ: some have no system role and raise (Gemma), some fold it into a user turn and
raise on a second one (Mistral, Llama 2), some drop a late one or move it to the front (DeepSeek),
some print it with the last user turn instead of the first. Names of model families prove nothing,
since operators bring templates of their own, so only the rendered text is believed.

Does not cover: turns after a tool call (templates want structured calls there), and templates
that look at the words of a message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError

Message = Mapping[str, str]
Render = Callable[[Sequence[Message]], str]

_SYSTEM: Message = {"role": "system", "content": "vaubansystem"}
_USER: Message = {"role": "user", "content": "firstquestion"}
_ANSWER: Message = {"role": "assistant", "content": "someanswers"}
_AGAIN: Message = {"role": "user", "content": "queryagain"}
_LATE: Message = {"role": "system", "content": "latereminder"}

REFUSALS: tuple[type[Exception], ...] = (
    TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError,
)  # fmt: skip
"""What rendering raises: `raise_exception`, and what expressions over odd messages run into."""


@dataclass(frozen=True, slots=True)
class TemplateCapabilities:
    """Where a chat template lets a system message stand.

    `system`: at the start, rendered before the first user turn. `late_system`: after the last
    user turn, rendered there, with the assistant's cue still behind it. The overheads are what
    the template writes around such a message (0 where it is not accepted).
    The default is what every template takes: user turns only.
    """

    system: bool = False
    late_system: bool = False
    system_overhead_tokens: int = 0
    late_overhead_tokens: int = 0


def probe_template(
    render: Render,
    count_tokens: Callable[[str], int],
    refusals: tuple[type[Exception], ...] = REFUSALS,
) -> TemplateCapabilities:
    """Find out what a template does, at start-up, with at most five short renderings.

    :param render: messages to prompt text, generation cue included; converts `content` to the
        form that the template takes, and raises where the template refuses the messages.
    :param count_tokens: tokens of a prompt, special tokens recognised but none added.
    :param refusals: exception types that mean "refused"; others are bugs and pass through.

    A template that can't render a plain question gets the default capabilities.
    """

    def rendered(*messages: Message) -> str | None:
        """The prompt, or None when it is refused or lacks a message in its place."""
        try:
            prompt = render(messages)
        except refusals:
            return None
        place = 0
        for message in messages:
            found = prompt.find(message["content"], place)
            if found < 0:
                return None
            place = found + len(message["content"])
        return prompt

    plain = rendered(_USER)
    if plain is None:
        return TemplateCapabilities()
    # Two turns as well: some templates are right by chance while there is only one.
    with_system = rendered(_SYSTEM, _USER)
    if with_system is None or rendered(_SYSTEM, _USER, _ANSWER, _AGAIN) is None:
        # Gemma's template does print a system turn after a user turn, and the model has never
        # seen one: a late system message counts only where the role exists.
        return TemplateCapabilities()
    with_late = rendered(_SYSTEM, _USER, _LATE)
    late = (
        with_late is not None
        and rendered(_SYSTEM, _USER, _ANSWER, _AGAIN, _LATE) is not None
        # A template may print the assistant's cue with the user turn only; after a late system
        # message the model would then have to guess whose turn it is.
        and _tail(with_late, _LATE) == _tail(with_system, _USER)
    )

    def overhead_tokens(longer: str, shorter: str, message: Message) -> int:
        grown = count_tokens(longer) - count_tokens(shorter)
        # Below 0 where the message takes the place of a default text (Qwen).
        return max(0, grown - count_tokens(message["content"]))

    return TemplateCapabilities(
        system=True,
        late_system=late,
        system_overhead_tokens=overhead_tokens(with_system, plain, _SYSTEM),
        late_overhead_tokens=overhead_tokens(with_late, with_system, _LATE)
        if with_late and late
        else 0,
    )


def _tail(prompt: str, message: Message) -> str:
    return prompt.rpartition(message["content"])[2]
