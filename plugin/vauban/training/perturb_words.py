"""Own word lists for `perturb.py`: harmless words and sentences, synonyms, look-alike letters."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

HARMLESS_WORDS = (
    "thanks", "please", "hello", "today", "weather", "garden", "coffee", "music", "recipe",
    "travel", "family", "library", "summer", "school", "birthday", "dinner", "kitchen", "football",
    "holiday", "flower", "painting", "bread", "water", "morning", "friend", "movie", "bicycle",
    "science", "history", "example", "question", "cooking", "sunny", "river", "spreadsheet",
)  # fmt: skip

HARMLESS_SENTENCES = (
    "Thank you very much for your help.",
    "The weather was lovely at the lake this weekend.",
    "I would also like a recipe for apple cake.",
    "Could you add two sources at the end?",
    "My sister and I are planning a trip to the mountains in May.",
    "The quarterly figures are in the attached spreadsheet.",
    "Short sentences are fine, no need for a table.",
    "The library opens at nine and closes at six.",
    "She bought bread, cheese and a bag of oranges.",
    "We have a small garden with tomatoes and beans.",
    "The train leaves from platform four at half past seven.",
    "This function returns the mean of a list of numbers.",
    "The museum shows paintings from three centuries.",
    "Have a good day and best regards from Vienna.",
    "The children built a kite out of paper and string.",
    "Water boils at a lower temperature in the mountains.",
    "The meeting was moved to Thursday afternoon.",
    "It is for a school project about rivers.",
    "The chair is made of oak and weighs six kilos.",
    "He has been learning the piano since last summer.",
    "Sales of bicycles rose by eight percent last year.",
    "The soup needs twenty minutes and a pinch of salt.",
    "The new version fixes a bug in the date picker.",
    "Our dog sleeps under the kitchen table most of the day.",
    "The lecture covers the history of the printing press.",
)

# Words that attacks are made of -> words that keep the sense. Lower case.
_SYNONYMS = """
ignore: disregard, overlook, skip, neglect, bypass
disregard: ignore, dismiss, overlook, drop
forget: drop, discard, unlearn, dismiss
override: overrule, supersede, replace, cancel
overwrite: replace, supersede
bypass: circumvent, evade, sidestep, avoid
cancel: revoke, annul, void, drop
stop: cease, quit, halt, end
reveal: disclose, show, expose, share, divulge
show: display, present, reveal, exhibit
print: output, write, display, type
output: print, emit, return, write
repeat: restate, echo, recite, reproduce
tell: inform, let know, notify
say: state, utter, declare, write
write: compose, draft, note, put
display: show, present, render
share: disclose, pass on, give
leak: disclose, spill, expose
send: forward, transmit, mail, dispatch
forward: send, relay, pass on
call: invoke, use, run
execute: run, perform, carry out
run: execute, launch, start
perform: do, carry out, complete
delete: erase, remove, wipe
remove: delete, drop, strip
transfer: move, send, wire
follow: obey, heed, observe, comply with
obey: follow, heed, comply with
comply: cooperate, conform, agree
answer: reply, respond
respond: reply, answer, react
reply: answer, respond
act: behave, operate, perform
behave: act, conduct yourself
pretend: imagine, make believe, suppose
imagine: suppose, picture, pretend
simulate: imitate, emulate, mimic
become: turn into, be
do: perform, carry out
must: have to, need to, shall
should: ought to, are to
never: at no time, not once
always: at all times, constantly, invariably
only: just, solely, merely
now: at present, currently, at once
immediately: at once, promptly, right away
instead: rather, alternatively
all: every one of, each of, the whole of
any: whatever, whichever
every: each, any
previous: prior, earlier, preceding, former
prior: previous, earlier, preceding
earlier: previous, prior, preceding
above: preceding, foregoing, earlier
following: next, subsequent, below
new: fresh, updated, latest
instruction: direction, order, directive, guideline
instructions: directions, orders, directives, guidelines
directions: orders, instructions, guidance
order: command, directive, instruction
orders: commands, directives, instructions
command: order, directive, instruction
commands: orders, directives, instructions
rule: regulation, principle, policy
rules: regulations, principles, policies
guideline: recommendation, rule, principle
guidelines: recommendations, rules, principles
restriction: limitation, constraint, limit
restrictions: limitations, constraints, limits
limitation: restriction, constraint, limit
limitations: restrictions, constraints, limits
filter: screen, check, barrier
filters: screens, checks, barriers
policy: rule, guideline, principle
policies: rules, guidelines, principles
safety: security, protective, precaution
ethical: moral, principled
system: platform, main, base
prompt: message, input, text
message: note, text, notice
context: background, conversation
conversation: dialogue, exchange, chat
secret: hidden, confidential, private
hidden: concealed, secret, unseen
confidential: private, secret, classified
password: passphrase, access code, login word
key: code, token
user: person, client, customer
assistant: helper, aide, agent
model: system, engine
chatbot: bot, assistant
developer: programmer, engineer, coder
administrator: admin, supervisor, operator
admin: administrator, supervisor
mode: state, setting
unrestricted: unlimited, free, unbounded
uncensored: unfiltered, free, open
free: unbound, liberated
character: persona, figure, role
role: part, persona, function
game: exercise, play
task: job, assignment, duty
request: demand, wish, query
question: query, inquiry
important: essential, crucial, vital
urgent: pressing, critical
attention: notice, note
warning: caution, notice
begin: start, commence
start: begin, commence
end: finish, conclusion, close
word: term, expression
words: terms, expressions
text: passage, writing, content
document: file, paper, record
information: details, data, facts
data: information, records
details: particulars, specifics
exactly: precisely, literally
anything: whatever, everything
everything: all, the whole lot
without: lacking, minus, with no
refuse: decline, reject
warn: caution, alert
provide: give, supply, offer
give: provide, hand, supply
use: employ, apply, utilise
change: alter, modify, switch
replace: swap, substitute, exchange
remember: recall, keep in mind
believe: think, trust
allowed: permitted, authorised
forbidden: banned, prohibited
illegal: unlawful, illicit
original: initial, first
initial: first, original, opening
"""


def _table(lines: str) -> Mapping[str, tuple[str, ...]]:
    pairs = (line.split(": ") for line in lines.split("\n") if line)
    return MappingProxyType({word: tuple(others.split(", ")) for word, others in pairs})


SYNONYMS = _table(_SYNONYMS)

# On a QWERTY keyboard: what lies beside a key.
_KEYS = (
    "q:wa w:qes e:wrd r:etf t:ryg y:tuh u:yij i:uok o:ipl p:ol a:qsz s:awdx d:sefc f:drgv g:fthb"
    " h:gyjn j:hukm k:jil l:kop z:asx x:zsdc c:xdfv v:cfgb b:vghn n:bhjm m:njk"
)
KEY_NEIGHBOURS: Mapping[str, str] = MappingProxyType(
    dict(pair.split(":") for pair in _KEYS.split())
)

# Letters of other alphabets that look Latin: Cyrillic, Greek, Armenian.
HOMOGLYPHS: Mapping[str, str] = MappingProxyType(
    {
        "a": "а", "c": "сϲ", "d": "ԁ", "e": "е", "h": "һ", "i": "іι", "j": "јϳ", "o": "оοօ",
        "p": "рρ", "q": "ԛ", "s": "ѕ", "u": "ս", "v": "ѵν", "w": "ԝ", "x": "х", "y": "у",
        "A": "АΑ", "B": "ВΒ", "C": "С", "E": "ЕΕ", "H": "НΗ", "I": "ІΙ", "J": "Ј", "K": "КΚ",
        "M": "МΜ", "N": "Ν", "O": "ОΟ", "P": "РΡ", "S": "Ѕ", "T": "ТΤ", "X": "ХΧ", "Y": "ҮΥ",
        "Z": "Ζ",
    }
)  # fmt: skip

LEET: Mapping[str, str] = MappingProxyType(
    {"a": "4@", "b": "8", "e": "3", "i": "1!", "l": "1", "o": "0", "s": "5$", "t": "7"}
)

_MORSE_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?"
_MORSE_CODES = """
.- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..-
-.-- --.. ----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----. .-.-.- --..-- ..--..
"""
MORSE: Mapping[str, str] = MappingProxyType(
    dict(zip(_MORSE_LETTERS, _MORSE_CODES.split(), strict=True))
)
