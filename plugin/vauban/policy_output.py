"""The policy of what leaves the server."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import model_validator

from vauban.policy_base import Section, field

OutputAction = Literal["redact", "replace", "stop", "hold", "monitor", "off"]
PiiAction = Literal["redact", "replace", "mask", "hash", "stop", "hold", "monitor", "off"]
OUTPUT_DETECTORS = (
    "secrets", "entropy", "canary", "prompt", "images", "links", "active", "control", "pii",
)  # fmt: skip


class OutputPolicy(Section):
    """What is taken out of the model's answers. redact: a mark that names the detector; replace:
    `output.replacement`; stop: the generation ends; hold: the answer is kept from there on until an
    operator releases it; monitor: only counted."""

    hold_back: int = field(
        64,
        "How much of a stream is held back, so that what spans several words can still be taken"
        " out.",
        "characters",
        ge=16,
        le=1024,
    )
    secrets: OutputAction = field("redact", "Credentials: detect-secrets' rules, key blocks.")
    entropy: OutputAction = field(
        "monitor", "Words that look drawn at random, with no name beside them that says key."
    )
    canary: OutputAction = field("stop", "Canaries, also spaced, reversed or encoded.")
    prompt: OutputAction = field("redact", "The operator's own text, repeated at length.")
    images: OutputAction = field(
        "redact", "Pictures and other resources that are fetched without a click, on other hosts."
    )
    links: OutputAction = field("monitor", "Links to other hosts that carry data.")
    active: OutputAction = field(
        "redact", "Markup that runs (outside code blocks): scripts, frames, forms, handlers."
    )
    control: OutputAction = field(
        "redact", "Terminal control characters, bidirectional overrides, invisible tag characters."
    )
    pii: PiiAction = field(
        "off",
        "Personal data with a form or a checksum (needs the extra `pii`). Also mask: each letter"
        " and digit becomes *; hash: the same code for the same value, keyed with the server's"
        " secret.",
    )
    pii_entities: tuple[str, ...] = field(
        ("EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "US_SSN"),
        "What is personal data, as Presidio names it.",
        min_length=1,
    )
    pii_score: float = field(
        0.4, "Least score of Presidio's that counts: 1 has a checksum.", "score", ge=0.05, le=1.0
    )
    pii_regions: tuple[str, ...] = field(
        ("US", "GB"),
        "Countries whose phone numbers are found without their +code, too; each costs time.",
        max_length=20,
    )
    allowed_hosts: tuple[str, ...] = field(
        (), "Hosts that pictures and links may point to, with all hosts under them."
    )
    replacement: str = field(
        "[removed]",
        "Text for the action replace.",
        max_length=200,
        pattern=r'^[^"\\\x00-\x1f]*$',
    )
    prompt_words: int = field(
        20, "So many words of the operator's text in a row are a leak.", "words", ge=6, le=1000
    )
    canaries: tuple[str, ...] = field(
        (), "Canaries that the operator has put into texts; at least 12 letters and digits each."
    )
    place_canary: Literal["identity", "request", "off"] = field(
        "identity",
        "Put a canary behind the operator's text in each request: the same for all requests of one"
        " caller (prefixes stay shared), or a new one each time.",
    )
    cache_salt: Literal["identity", "group", "off"] = field(
        "identity",
        "Who shares cached prefixes, whose timing tells what others have asked: requests of one"
        " caller; of all callers whose credentials were issued to one group; all.",
    )

    @property
    def held_by(self) -> tuple[str, ...]:
        """The detectors whose finding holds an answer."""
        return tuple(name for name in OUTPUT_DETECTORS if getattr(self, name) == "hold")

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON of this section."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @model_validator(mode="after")
    def _canaries_are_long_enough(self) -> OutputPolicy:
        for canary in self.canaries:
            plain = sum(c.isascii() and c.isalnum() for c in canary)
            if not 12 <= plain <= len(canary) <= 100:
                raise ValueError("a canary needs 12 letters or digits, and at most 100 characters")
        return self
