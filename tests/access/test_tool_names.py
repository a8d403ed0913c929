"""One tool has many spellings, and they are read alike."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vauban.access.tool_names import is_destructive, plain, suffixes
from vauban.policy_tools import DESTRUCTIVE_VERBS

WIDE = {ord(c): ord(c) + 0xFEE0 for c in map(chr, range(0x21, 0x7F))}
SPELLINGS = {
    "snake": lambda words: "_".join(words),
    "kebab": lambda words: "-".join(words),
    "dots": lambda words: ".".join(words),
    "camel": lambda words: words[0] + "".join(w.title() for w in words[1:]),
    "pascal": lambda words: "".join(w.title() for w in words),
    "capitals": lambda words: "_".join(words).upper(),
    "wide": lambda words: "_".join(words).translate(WIDE),
    "mcp": lambda words: "mcp__some_server__" + "_".join(words),
    "invisible": lambda words: "_".join("\u200b".join(w) for w in words),
    "bidi": lambda words: "\u202e" + "_".join(words),
    "accents": lambda words: "_".join("".join(c + "\u0336" for c in w) for w in words),
}


@pytest.mark.parametrize("verb", DESTRUCTIVE_VERBS)
@pytest.mark.parametrize("spelling", list(SPELLINGS))
def test_a_verb_is_found_however_it_is_written(verb: str, spelling: str) -> None:
    for words in ([verb, "thing"], ["thing", verb], [verb]):
        assert is_destructive(SPELLINGS[spelling](words), DESTRUCTIVE_VERBS)


@pytest.mark.parametrize(
    "name",
    ["sendemail", "SENDMAIL", "deletefile", "execCommand", "dElEtE", "dеlete_file", "delete2",
     "droptable", "transferfunds", "gmail.users.messages.send", "files/delete", "HTTPDelete",
     "𝐝𝐞𝐥𝐞𝐭𝐞_file", "ⓢⓔⓝⓓ_mail", "mcp__a__b__delete", "WİPE", "Ɯipe_disk"],
)  # fmt: skip
def test_disguises(name: str) -> None:
    assert is_destructive(name, DESTRUCTIVE_VERBS)


@pytest.mark.parametrize(
    "name",
    ["get_weather", "read_file", "search", "list_sent_items", "dropbox_list", "payload_info",
     "sender_info", "Bash", "get_payments", "fetch_url", "retrieve", "web_search", "python",
     "code_interpreter", "create_event", "list_deleted_files", "mcp__send_service__list_messages",
     "recommend", "buyer_profile", ""],
)  # fmt: skip
def test_ordinary_tools_are_not_destructive(name: str) -> None:
    assert not is_destructive(name, DESTRUCTIVE_VERBS)


@example("İ")
@example("ǰΐƜ")
@example("0Ɯ;A")
@given(st.text(max_size=40))
def test_any_text_is_a_name(name: str) -> None:
    is_destructive(name, DESTRUCTIVE_VERBS)
    assert plain(plain(name)) == plain(name)
    assert all(isinstance(part, str) for part in suffixes(name))


@given(st.lists(st.from_regex(r"[a-z]{2,8}", fullmatch=True), min_size=1, max_size=4))
def test_all_spellings_are_one_name(words: list[str]) -> None:
    spaced = {name: spell for name, spell in SPELLINGS.items() if name not in ("mcp", "dots")}
    assert {plain(spell(words)) for spell in spaced.values()} == {"".join(words)}
    assert plain(SPELLINGS["dots"](words)) == ".".join(words)
    assert suffixes(SPELLINGS["mcp"](words))[-1] == "".join(words)


def test_a_namespace_is_no_part_of_a_word() -> None:
    assert len({plain(name) for name in ("read_file", "read__file", "read.file", "read/file")}) == 2
    assert is_destructive("mcp__ßßßßßßßß__delete_file", DESTRUCTIVE_VERBS)
