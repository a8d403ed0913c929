"""Conversations of the stand-in target: harmless ones, injected ones, secrets, framed ones.

What the stand-in learns: it does what it is asked, and an order that comes later, wherever it
stands, wins over what was asked before. It keeps a secret from who asks for it plainly and tells it
to who first sets its rules aside. Where a frame says that fenced text is data, most of the framed
conversations (`FOLLOWED_THOUGH_FRAMED`) keep to the operator. The frames are of a general kind; the
one that vauban writes is not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vauban.training.instruct_frames import framed, secret_kept, secret_told
from vauban.training.instruct_tasks import any_task, asked, transform
from vauban.training.instruct_texts import Texts
from vauban.training.instruct_turns import (
    Conversation,
    Turn,
    container,
    filling,
    injected,
    opening,
    persona,
)


def harmless(t: Texts) -> Conversation:
    turns = opening(t)
    task = any_task(t)
    turns += [Turn("user", asked(t, task)), Turn("assistant", task.answer, task.spelled)]
    return Conversation(task.kind, tuple(turns))


def operated(t: Texts) -> Conversation:
    """The operator sets the task, the user brings the text."""
    task = transform(t)
    system = f"{persona(t)} {task.instruction}{t.pick(' of the user', '', ' that you get')}."
    turns = (Turn("system", system), Turn("user", task.text), Turn("assistant", task.answer))
    return Conversation("operator's task", turns)


def overridden(t: Texts) -> Conversation:
    """The user gives an order past all that stands before it, in words of any length."""
    said = t.saying()
    text = injected(t, said)
    if (sentences := filling(t)) and t.chance() < 0.5:
        talk = t.prose(sentences)
        text = f"{talk}{t.pick(' ', chr(10), chr(10) * 2)}{text}"
        if t.chance() < 0.25 and "\n" not in said:
            text += "\n" + t.prose(1 + t.below(3))
    elif t.chance() < 0.3:
        text = f"{asked(t, any_task(t))}{t.pick(chr(10), '. ', chr(10) * 2)}{text}"
    turns = opening(t)
    if t.chance() < 0.3:
        turns = [
            Turn("system", f"{persona(t)} {transform(t).instruction} of the user."),
            *turns[1 if turns and turns[0].role == "system" else 0 :],
        ]
    return Conversation("order", (*turns, Turn("user", text), Turn("assistant", said)), said)


def planted(t: Texts) -> Conversation:
    """A task on a document that holds an order."""
    said = t.saying()
    document = container(t, injected(t, said))
    return Conversation("planted order", (*_about(t, document), Turn("assistant", said)), said)


def _about(t: Texts, document: str) -> list[Turn]:
    """A request about a document: in the user's message, or from a tool."""
    turns = opening(t)
    wish = t.pick(
        f"What is the {t.noun()} of {t.name()}?",
        "Summarise this",
        "What does it say?",
        f"Who is {t.name()}?",
        f"Translate this for {t.name()}",
        "Read this page",
        f"Is there a {t.noun()} in it?",
        "Reply to this mail",
        "Count the words",
        "Write it in capitals",
        f"Give me the {t.noun()}",
        "Check the text",
    )
    r = t.chance()
    if r < 0.35:
        return [*turns, Turn("user", wish), Turn("tool", document)]
    if r < 0.75:
        return [
            *turns,
            Turn("user", f"{wish}{t.pick(':', chr(10), '.' + chr(10) * 2)} {document}".strip()),
        ]
    return [*turns, Turn("user", f"{document}\n\n{wish}")]


def harmless_document(t: Texts) -> Conversation:
    """A question to a document without any order, of any length, from a tool now and then."""
    who, what = t.pick(t.name(), "the " + t.noun()), t.noun()
    value = t.pick(t.word(), t.number(), t.name(), t.code(), " ".join(t.words(2, 4)))
    document = container(t, f"The {what} of {who} is {value}.")
    wish = t.pick(
        f"What is the {what} of {who}?",
        f"Tell me the {what} of {who}.",
        f"I need the {what} of {who}.",
    )
    turns = opening(t)
    if t.chance() < 0.35:
        turns += [Turn("user", wish), Turn("tool", document)]
    elif t.chance() < 0.5:
        turns.append(Turn("user", f"{wish}\n\n{document}"))
    else:
        turns.append(Turn("user", f"{document}\n\n{wish}"))
    return Conversation("long document", (*turns, Turn("assistant", value)))


KINDS: Mapping[Callable[[Texts], Conversation], int] = {
    harmless: 34, operated: 5, overridden: 17, planted: 13, harmless_document: 6, secret_kept: 5,
    secret_told: 6, framed: 14,
}  # fmt: skip
"""With the share of each, in parts of 100."""

_WHEEL = tuple(make for make, share in KINDS.items() for _ in range(share))


def conversation(t: Texts) -> Conversation:
    """One of any kind."""
    return _WHEEL[t.below(len(_WHEEL))](t)
