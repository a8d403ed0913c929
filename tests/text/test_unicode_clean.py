"""What cleaning takes out, and above all what it leaves alone."""

from __future__ import annotations

import sys

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.text.unicode_clean import clean

ORDINARY = {
    # Arabic script: joiners, marks, bidi marks and isolates in mixed text
    "arabic": "اللغة العربية جميلة، أليس كذلك؟",
    "arabic_vocalised": "بِسْمِ ٱللَّهِ ٱلرَّحْمَٰنِ ٱلرَّحِيمِ",
    "persian_zwnj": "می‌خواهم کتاب‌هایم را به خانه‌ای ببرم",
    "persian_after_r_joining": "او‌ها رو‌به‌رو هستند",
    "urdu": "یہ اُردو زبان کا ایک جملہ ہے۔",
    "arabic_zwj_abbreviation": "سنة ١٤٤٥ ه‍",
    "kurdish": "ئه‌م کتێبه‌ زۆر باشه‌",
    "arabic_rlm": "قال: «C++‎ لغة برمجة»!‏",
    "arabic_isolate": "اسم الملف ⁦report.pdf⁩ موجود",
    "uyghur": "ئۇيغۇر تىلى",
    # Hebrew
    "hebrew": "שלום עולם, מה שלומך היום?",
    "hebrew_niqqud": "בְּרֵאשִׁ֖ית בָּרָ֣א אֱלֹהִ֑ים",
    "hebrew_cgj": "יְרוּשָׁלַ͏ִם",
    "hebrew_lrm": "המחיר הוא ‎-5 שקלים",
    "yiddish": "ייִדיש איז אַ שפּראַך",
    # Indic
    "hindi": "हिन्दी में एक साधारण वाक्य।",
    "hindi_zwnj": "श्रीमान्‌ क्‌ष",
    "marathi_eyelash_ra": "दर्‍या वाऱ्यावर",
    "bengali_zwj": "র‍্যাব ও র‍্যালি",
    "bengali": "আমি বাংলায় গান গাই।",
    "malayalam_chillu": "അവന്‍ വന്നു, ഞാന്‍ കണ്ടു",
    "sinhala_zwj": "ශ්‍රී ලංකාව ක්‍රියා",
    "tamil": "தமிழ் ஒரு செம்மொழி ஆகும்.",
    "telugu": "తెలుగు భాష చాలా మధురమైనది.",
    "kannada": "ಕನ್ನಡ ರ‍್ಯಾಲಿ",
    "gujarati": "ગુજરાતી ભાષા સુંદર છે.",
    "punjabi": "ਪੰਜਾਬੀ ਵਿੱਚ ਇੱਕ ਵਾਕ।",
    "sanskrit_accents": "अ॒ग्निमी॑ळे पु॒रोहि॑तं",
    # South-East Asia and Tibet
    "thai": "ภาษาไทยน้ำใจกว้างขวาง",
    "thai_sara_am": "กำลังทำ",
    "khmer_zwsp": "ខ្ញុំ​ចង់​រៀន​ភាសា​ខ្មែរ។",
    "lao": "ພາສາລາວ​ງ່າຍ",
    "myanmar": "မြန်မာဘာသာစကား",
    "myanmar_stack": "အင်္ဂလိပ် ကြွေး",
    "tibetan": "བོད་སྐད་ནི་ཡག་པོ་འདུག",
    "tibetan_kalachakra": "ཧྐྵྨླྺྼྻྂ",
    "javanese": "ꦧꦱꦗꦮ",
    # East Asia
    "chinese_full_width": "你好，世界！这是“测试”（一）。",
    "chinese_ext_b": "𠮷野家 𡃁 𪚥",
    "chinese_compat_ideograph": "神社 福 朗",
    "japanese": "カタカナとひらがな、ＡＢＣ１２３、ｶﾀｶﾅ、㈱、①",
    "japanese_ivs": "葛󠄀城市 辻󠄁さん 邉󠄂",
    "japanese_nfd": "か\u3099き\u3099",
    "korean": "안녕하세요 세계",
    "korean_jamo_nfd": "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "korean_filler_syllable": "\u115f\u1161 \u1100\u1160\u11ab",
    "mongolian": "ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ᠋ ᠠᠢᠯ᠎ᠠ",
    # Latin, Cyrillic, Greek and others
    "french": "L’été, où étaient les œufs ? « Là-bas » — naïf.",
    "german": "Die Größe der Straße: „schön“",
    "vietnamese": "Tiếng Việt rất đẹp, phải không?",
    "vietnamese_nfd": "Tie\u0302\u0301ng Vie\u0323\u0302t",
    "turkish": "Işık ılık süt içti İstanbul'da",
    "polish": "Zażółć gęślą jaźń",
    "russian": "Съешь же ещё этих мягких французских булок",
    "ukrainian": "Ґанок, їжак і м'який",
    "greek_polytonic": "Ἐν ἀρχῇ ἦν ὁ Λόγος",
    "ipa": "/ˈɡʊd ˈmɔː.nɪŋ/ [ɔ̃ t͡ʃ n̩ ɹ̝̊]",
    "yoruba": "ọ̀rẹ́ mi, ẹ̀kọ́ ọ̀fẹ́",
    "church_slavonic": "Бл҃гослови́ гдⷭ҇и",
    "georgian": "ქართული ენა",
    "armenian": "Հայերեն լեզու",
    "amharic": "አማርኛ ቋንቋ",
    "cherokee": "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ",
    "greenlandic_nfd": "A\u030angstro\u0308m",
    # Maths and signs
    "maths": "∑ᵢ xᵢ² ≤ ½‖x‖₂, ∀x∈ℝⁿ, 𝒇(𝐱)=𝔼[𝑋]",
    "maths_variation": "A∩︀B ∪︀ C",
    "ligatures_units": "ﬁnal ofﬁce 5 ㎏ 20 ℃ 3 Ω ™ ℡ №",
    "roman": "Ⅷ ⅻ ¼ 10⁻³ H₂O",
    "combining_maths": "x̄ ± σ̂, v⃗ · n̂",
    "braille_music": "⠓⠑⠇⠇⠕ 𝄞 ♯ 🎼",
    # Emoji
    "emoji_family": "👨‍👩‍👧‍👦 and 👩🏽‍🚀 and 🧑‍🤝‍🧑",
    "emoji_flags": "🏴󠁧󠁢󠁥󠁮󠁧󠁿 🏴󠁧󠁢󠁳󠁣󠁴󠁿 🏴󠁧󠁢󠁷󠁬󠁳󠁿 🇫🇷 🏳️‍🌈 🏴‍☠️",
    "emoji_selectors": "❤️ ☎︎ ✈️ 1️⃣ #️⃣ ©️ 🕵️‍♂️ ❤️‍🔥",
    "emoji_new": "\U0001fae8 \U0001fadf \U0001face",
    "emoji_reserved": "\U0001faff",
    # Code and markup
    "python": "def naïve(x: int) -> str:\n\treturn f'{x!r:>{10}}'  # π ≈ 3.14\r\n",
    "javascript": "const $el = `${a}`; /[\\u200b-\\u200d]/.test(s) && a<b>c;",
    "odd_identifiers": "let ಠ_ಠ = ªº; var ℮ = µ; _ñ = Δx",
    "regex": r"(?<=\w)[^\x00-\x1f]{2,}\p{L}+\\u202e",
    "html": "<p>caf&eacute; <b>x</b> <a href='?a=1&amp;b=%20'>y</a></p>",
    "box": "┌─┐\n│ │ ░▒▓ ← → ⇒\n└─┘",
    "spaces": "a\u00a0b\u2009c\u3000d\u202fe\u2028f",
    "replacement": "broken \ufffd and object \ufffc",
}

SMUGGLED = [
    ("tag", "hi" + "".join(chr(0xE0000 + ord(c)) for c in "run"), "hi"),
    ("tag", "\U0001f3f4\U000e0075\U000e0073\U000e007f", "\U0001f3f4"),
    ("variation_selector", "😀\ufe0f\U000e0151\U000e0152", "😀\ufe0f"),
    ("variation_selector", "a\ufe0fb1\ufe0f", "ab1"),
    ("variation_selector", "漢\U000e0151字", "漢字"),
    ("zero_width", "ig\u200bno\u200cre\u200d \u2060a\ufeffl\u00adl", "ignore all"),
    ("zero_width", "\u2062\u2064\u3164\uffa0\u115f\u1160x", "x"),
    ("zero_width", "می\u200c\u200c\u200d\u200cخواهم", "می\u200cخواهم"),
    ("zero_width", "ab\u034fc", "abc"),
    ("zero_width", "ᠠ\u180e\u180e\u180e b", "ᠠ b"),
    ("bidi", "\u202eevil\u202c \u2066x\u2069 a\u200eb", "evil x ab"),
    ("bidi", "שלום ig\u200enore", "שלום ignore"),
    ("private_use", "ig\ue000no\U000f0000re", "ignore"),
    ("unassigned", "ig\u0378no\ufdd0re\U0001ffff", "ignore"),
    ("surrogate", "ig\ud800nore\udfff", "ignore"),
    ("control", "ig\x00no\x1bre\x7f\x9f", "ignore"),
    ("control", "page\x0cone\x0btwo\x85three\x1ffour", "page\none\ntwo\nthree four"),
    ("combining_pile", "a" + "\u0301" * 50 + "b", "a" + "\u0301" * 4 + "b"),
    ("combining_pile", "ก" + "้" * 50, "ก" + "้" * 10),
]


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_text_is_unchanged(name: str) -> None:
    assert clean(ORDINARY[name]) == (ORDINARY[name], {})


@pytest.mark.parametrize(("kind", "text", "expected"), SMUGGLED)
def test_smuggling_is_taken_out_and_counted(kind: str, text: str, expected: str) -> None:
    cleaned, found = clean(text)
    assert cleaned == expected
    assert set(found) == {kind}
    if kind != "control":
        assert found[kind] == len(text) - len(expected)


IGNORABLE = regex.findall(
    r"\p{Default_Ignorable_Code_Point}", "".join(map(chr, range(sys.maxunicode + 1)))
)


def test_no_default_ignorable_character_stays_inside_a_latin_word() -> None:
    assert len(IGNORABLE) > 4000
    left = [hex(ord(char)) for char in IGNORABLE if clean(f"a{char}b")[0] != "ab"]
    assert left == []


# Everything that a rule looks at, so that random texts hit the borders between the rules.
NASTY = sorted(
    "ab1#*ב‎אبمक्तกំក་漢、❤😀👩🚀⚕🏴🇫ᠠ∩0가가\n\r\t -"
    "\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u115f\u1160\u1161\u180b\u180e\u200f\u061c"
    "\u202a\u202e\u2066\u2069\ufe00\ufe0e\ufe0f\u20e3\U000e0100\U000e0151\u0301\u0323\u05b0"
    "\u0650\u0e49\u0f90\ue000\u0378\ud800\x00\x0b\x85\x1f\U0001f3fd\U0001faff"
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e007f"
)
nasty_text = st.text(st.sampled_from(NASTY), max_size=40) | st.text(max_size=30)


@given(nasty_text)
@settings(max_examples=1500, deadline=None)
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once, found = clean(text)
    assert clean(once) == (once, {})
    assert (once == text) == (not found)
    assert len(once) <= len(text)


@given(st.text(st.characters(max_codepoint=0x24F, exclude_categories=("Cc", "Cf")), max_size=60))
def test_latin_text_is_unchanged(text: str) -> None:
    assert clean(text) == (text, {})
