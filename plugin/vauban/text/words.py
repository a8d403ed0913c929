"""Words that tell a disguised sentence from noise.

Leetspeak, rot13 and reversal are undone only where the result reads like language: a wrong guess
costs the detector a segment of garbage. Function words make almost half of running text, and the
second list is what an instruction to a model can hardly do without. Latin-script languages only.

`known_english` is for choosing between readings of a word that is disguised for certain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

_FUNCTION_WORDS = """
the of and to in is you that it he was for on are as with his they be at one have this from
had by not but what all were when we there can an your which their said if do will each about
how up out them then she many some so these would other into has more her two like him time no
make than been its who now my made over did down only way find use may any me our just after
also us know most where does should could because why such here must being between before never
every always please without while until or am under both those off very
und der das nicht ist ein eine mit auf sich auch von den dem sie wie
les des est dans pour que qui pas vous une sur avec por para como los las del una con
"""

_INSTRUCTION_WORDS = """
ignore ignoring disregard forget override bypass previous prior above earlier following below
instruction instructions instruct rule rules system prompt prompts message messages reveal show
print output repeat say tell write give send secret secrets password passwords passphrase key
keys token tokens credential credentials api hidden confidential private developer mode admin
administrator root user assistant model jailbreak jailbroken unrestricted restriction
restrictions filter filters safety policy policies guideline guidelines content answer respond
response question pretend act role roleplay character execute run command commands code shell
delete file files email url link http https attack exploit hack hacker hacking malware weapon
bomb drug drugs kill illegal translate decode encode base64 text word words sentence summary
summarize instead new task start end begin stop important urgent attention note warning data
information access account bank money transfer pay click download upload install open read
context initial original full entire exactly first last next step steps explain describe help
need want let get go come think question world hello good name person people
"""

_SHORT_WORDS = """
act add age ago ai aid aim air api art ask bad bag ban bar bat bed best bet bid big bit bot box
boy bug bus buy car cat cd cut day dear die dig dog dot due ear eat egg else end err eye fan far
fat fee few fit fix fly fox fun gas god gun guy hat hey hi hit hot ice id ill inc ip it job joy kid
lab lack lad lap law lay led leg let lie lip list lit llm log lot low mad man map mat max men met
mid mix mom net nil nor odd oh oil ok old oil one own pay pen per pet pie pin pit pop pot put raw
red rid rob rot row run sad sat sea see set sex she shy sin sir sit six sky son spy sub sum sun tab
tag tap tax tea ten tie til tip toe ton too top toy try two van via vs war web wet win wow yes yet
zip
"""

VOCABULARY = frozenset(_FUNCTION_WORDS.split()) | frozenset(_INSTRUCTION_WORDS.split())
# Words too short for `known_english`, whose list of them would be full of abbreviations.
SHORT_WORDS = frozenset(_SHORT_WORDS.split())


@cache
def known_english() -> frozenset[str]:
    """About 20,000 words of four letters and more, and the vocabulary. Lower case.

    The whole words of BERT's uncased English vocabulary (Apache-2.0), sorted.
    """
    listed = files("vauban").joinpath("data", "english_words.txt").read_text(encoding="ascii")
    return VOCABULARY.union(listed.split())


def replace_words(
    pattern: re.Pattern[str], text: str, readings: Mapping[str, str]
) -> tuple[str, int]:
    """`text` with every match of `pattern` that has a reading replaced by it, and how many had."""
    count = 0

    def read(match: re.Match[str]) -> str:
        nonlocal count
        reading = readings.get(match.group())
        count += reading is not None
        return match.group() if reading is None else reading

    return pattern.sub(read, text), count
