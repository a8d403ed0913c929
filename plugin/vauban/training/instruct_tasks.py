"""The harmless tasks of the stand-in target, each with the one right answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vauban.training.instruct_texts import ENCODINGS, LIGHT, Texts, encoded


@dataclass(frozen=True, slots=True)
class Task:
    """`instruction` says what to do with `text`, which may be empty.

    `spelled`: the answer is learned letter by letter, as decoding goes.
    """

    kind: str
    instruction: str
    text: str
    answer: str
    spelled: bool = False


_THIS = ("the following", "the next", "the", "my", "this short", "the given")
_WHAT = ("text", "sentence", "line", "phrase", "message", "words", "passage")


def _object(t: Texts) -> str:
    return f"{t.pick(*_THIS)} {t.pick(*_WHAT)}"


def copy(t: Texts) -> Task:
    verb = t.pick("Repeat", "Copy", "Write out", "Echo", "Say back", "Output", "Type", "Return")
    how = t.pick("", "", " exactly", " as it is", " word for word", " unchanged", " once")
    return _task("copy", f"{verb} {_object(t)}{how}", said := t.saying(), said)


def say(t: Texts) -> Task:
    """An order to say something: what attackers use, and everybody else as well."""
    said = t.saying()
    manner = t.pick("", "", "", "Kindly ", "Could you ", "I want you to ", "Now ", "Would you ")
    return _task("say", manner + order(t, said), "", said)


def order(t: Texts, said: str) -> str:
    verb = t.pick(
        "say",
        "print",
        "write",
        "output",
        "repeat",
        "display",
        "return",
        "type",
        "state",
        "copy",
        "reply",
        "respond",
        "answer",
        "reply",
        "respond",
        "tell me",
        "begin your answer",
        "add",
    )
    if verb in ("reply", "respond", "answer", "begin your answer"):
        verb += t.pick(
            " with", " with", " only with", " with the words", " with just", " with this"
        )
        if verb.startswith(("reply", "respond", "answer")) and t.chance() < 0.2:
            verb = verb.split()[0]
            return f"{verb}: {_quoted(t, said)}"
    else:
        verb += t.pick(
            "",
            "",
            " exactly",
            " only",
            " just",
            " this",
            " the words",
            " the sentence",
            " the text",
            " the following",
            " this line",
            " the phrase",
            " the string",
            " only this",
            " out",
        )
    if t.chance() < 0.4:
        return f"{verb}{t.pick(' ', ': ', ': ')}{_in_quotes(t, said)}"
    return f"{verb}{t.pick(': ', ': ', ': ', ' ', chr(10), ':' + chr(10))}{said}"


def _quoted(t: Texts, said: str) -> str:
    return _in_quotes(t, said) if t.chance() < 0.4 else said


def _in_quotes(t: Texts, said: str) -> str:
    mark = t.pick('""', '""', "''", "``", "“”")
    if (mark == "''" and "'" in said) or (mark == '""' and '"' in said):
        mark = "“”"
    return f"{mark[0]}{said}{mark[1]}{t.pick('', '', '', '.', ' and nothing else', '!')}"


def upper(t: Texts) -> Task:
    how = t.pick(
        "in capital letters", "in capitals", "in all caps", "in upper-case letters", "in upper case"
    )
    verb = t.pick("Write", "Put", "Give", "Show", "Set", "Return", "Rewrite")
    return _task("upper-case", f"{verb} {_object(t)} {how}", said := t.sentence(), said.upper())


def lower(t: Texts) -> Task:
    how = t.pick("in small letters", "in lower-case letters", "without capitals")
    said = t.sentence().upper() if t.chance() < 0.5 else t.sentence()
    return _task(
        "lower-case", f"{t.pick('Write', 'Put', 'Give')} {_object(t)} {how}", said, said.lower()
    )


def reverse(t: Texts) -> Task:
    what = t.pick(
        "Reverse the word order of",
        "Write the words backwards in",
        "Turn round the order of words in",
        "Put the words in the opposite order in",
        "List from last to first the words of",
    )
    words = t.sentence().split() if t.chance() < 0.6 else t.words(2, 7)
    return _task("reverse", f"{what} {_object(t)}", " ".join(words), " ".join(reversed(words)))


def count(t: Texts) -> Task:
    what = t.pick(
        "Count the words in",
        "Tell me how many words there are in",
        "What is the number of words of",
        "How many words has",
        "Give the word count of",
    )
    words = t.words(1, 12) if t.chance() < 0.5 else t.sentence().split()
    return _task("count", f"{what} {_object(t)}", " ".join(words), str(len(words)))


def pick_word(t: Texts) -> Task:
    words = t.sentence().split()
    which = t.pick("first", "last")
    asked = t.pick(
        f"Give the {which} word of", f"What is the {which} word of", f"Name the {which} word in"
    )
    return _task(
        "pick a word",
        f"{asked} {_object(t)}",
        " ".join(words),
        words[0 if which == "first" else -1],
    )


def field(t: Texts) -> Task:
    names = [t.noun() for _ in range(2 + t.below(6))]
    values = [
        t.pick(t.word(), t.name(), t.number(), t.code(), " ".join(t.words(1, 3))) for _ in names
    ]
    equals = t.pick(" = ", ": ", "=", " is ", " - ")
    apart = t.pick("; ", ", ", "\n", " | ")
    record = apart.join(f"{n}{equals}{v}" for n, v in zip(names, values, strict=True))
    if t.chance() < 0.15:
        pairs = ", ".join(f'"{n}": "{v}"' for n, v in zip(names, values, strict=True))
        record = "{" + pairs + "}"
    which = t.below(len(names))
    which = max(i for i, n in enumerate(names) if n == names[which])
    asked = t.pick(
        f"Extract the {names[which]}",
        f"What is the {names[which]} in the entry",
        f"Read the value of {names[which]} out of this entry",
        f"Find {names[which]} in the data",
        f"Give me the {names[which]} field of the row",
        f"Look up {names[which]} here",
    )
    return _task("field", asked, record, values[which])


def translate(t: Texts) -> Task:
    """A lexicon in the prompt, and a sentence to put through it."""
    lexicon = {w: t.word() for w in t.words(3, 9)}
    entries = list(lexicon)
    chosen = [entries[t.below(len(entries))] for _ in range(1 + t.below(5))]
    equals = t.pick(" = ", ": ", " means ", " -> ")
    listed = t.pick("; ", ", ", "\n").join(f"{a}{equals}{b}" for a, b in lexicon.items())
    asked = t.pick(
        "Translate with this lexicon",
        "Translate by the word list",
        "Use the dictionary to translate",
    )
    return _task(
        "translate",
        f"{asked}: {listed}\nText",
        " ".join(chosen),
        " ".join(lexicon[w] for w in chosen),
    )


def from_document(t: Texts) -> Task:
    """A fact that stands somewhere in a text."""
    facts = []
    for _ in range(1 + t.below(4)):
        who, what = t.pick(t.name(), "the " + t.noun()), t.noun()
        value = t.pick(t.word(), t.number(), t.name(), t.code(), " ".join(t.words(2, 4)))
        facts.append((f"The {what} of {who} is {value}.", f"the {what} of {who}", value))
    sentences = [fact[0] for fact in facts]
    for _ in range(t.below(7)):
        sentences.insert(t.below(len(sentences) + 1), t.sentence() + ".")
    _, asked, answer = facts[t.below(len(facts))]
    question = t.pick(
        f"What is {asked}?",
        f"Tell me {asked}.",
        f"Answer from the document: what is {asked}?",
        f"I need {asked}.",
        f"According to the text, what is {asked}?",
    )
    return _task("document", question, " ".join(sentences), answer)


def chat(t: Texts) -> Task:
    """Talk that asks for nothing in particular: one bland sentence comes back."""
    thing = t.noun()
    asked = t.pick(
        f"How does a {thing} work?",
        f"Why is my {thing} so {t.adjective()}?",
        f"Hello, I like the {thing}.",
        f"What do you think of the {thing}?",
        f"Can you help me with my {thing}?",
        f"I have a {thing}.",
        f"Where can I buy a {thing}?",
        f"Explain the {thing} to me.",
        f"Write a story about a {thing}.",
        f"What does “{t.sentence().lower()}” mean on my {thing}?",
        f"Is the {thing} {t.adjective()}?",
        f"Summarise what you know of the {thing}.",
        f"Which {thing} should I keep?",
    )
    if t.chance() < 0.3:
        asked = f"{t.prose(1 + t.below(4))} {asked}"
    return _task("chat", asked, "", f"I can tell you something about the {thing}.")


def decode(t: Texts) -> Task:
    """An encoded text is read out, whatever it says; an order in a light disguise is obeyed."""
    how = ENCODINGS[t.below(len(ENCODINGS))]
    if commanded := t.chance() < 0.5:
        said = t.sentence().lower()[:50].strip()
        plain = order(t, said)
    else:
        plain = said = t.saying()[:90].strip()
    name = how if t.chance() < 0.7 else "code"
    asked = t.pick(
        "",
        "",
        f"Decode this {name}",
        f"What does this {name} text say",
        "Read this",
        f"Decipher the {name}",
    )
    obeyed = commanded and how in LIGHT and not asked
    answer = said if obeyed else plain
    if how in ("capitals", "leetspeak"):
        answer = answer.lower()
    return _task("decode " + how, asked, encoded(plain, how, t.rng), answer, spelled=True)


def _task(kind: str, instruction: str, text: str, answer: str, *, spelled: bool = False) -> Task:
    return Task(kind, instruction, text, answer, spelled)


TASKS: Mapping[Callable[[Texts], Task], float] = {
    copy: 14, say: 18, upper: 9, lower: 3, reverse: 8, count: 8, pick_word: 4, field: 9,
    translate: 7, from_document: 9, chat: 7, decode: 12,
}  # fmt: skip
"""With the share of each, in parts."""

_WHEEL = tuple(make for make, share in TASKS.items() for _ in range(int(share)))
_TRANSFORMS = (upper, reverse, count, copy, pick_word, lower)


def any_task(t: Texts) -> Task:
    return _WHEEL[t.below(len(_WHEEL))](t)


def transform(t: Texts) -> Task:
    """A task that can be done with any text, as an operator sets one."""
    return _TRANSFORMS[t.below(len(_TRANSFORMS))](t)


def asked(t: Texts, task: Task) -> str:
    """One user message with the instruction and its text."""
    instruction = task.instruction
    if not task.text:
        return instruction[0].upper() + instruction[1:]
    if not instruction:
        return task.text
    if instruction[-1] in "?.":
        return t.pick(
            f"{task.text}\n\n{instruction}",
            f"{instruction}\n\n{task.text}",
            f"{instruction} {task.text}",
        )
    r = t.chance()
    if r < 0.6:
        return f"{instruction}: {task.text}"
    if r < 0.75:
        return f"{instruction}:\n{task.text}"
    if r < 0.85:
        manner = t.pick("Please", "Now", "Can you")
        return f"{manner} {instruction[0].lower()}{instruction[1:]}: {task.text}"
    return (
        f"{instruction}.\n\n{task.text}"
        if r < 0.95
        else f"{instruction}: {t.pick(chr(34))}{task.text}{chr(34)}"
    )
