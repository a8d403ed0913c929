"""The composition root: text in, verdict out, and the one fail-closed rule.

A host translates a request into segments, asks `Guard.read` what the model may get and what the
encoder must see, has the windows encoded (`encode_each`, usually through a `ScreenQueue`), and
asks `Guard.judge` what the outcome means. Nothing else in vauban turns a failure into a verdict.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from vauban.access.standing import Standing
from vauban.access.tool_rules import Ruling, ToolDecision, Why
from vauban.detectors import checkpoint
from vauban.detectors.windows import Windows, WindowTokenizer
from vauban.errors import (
    RequestTooLarge,
    ScreeningFailed,
    StandingUnknown,
    StateUnavailable,
    TooManyApprovals,
)
from vauban.policy import Policy
from vauban.policy_extraction import ExtractionPolicy
from vauban.policy_standing import StatePolicy
from vauban.text.normalize import Normalizer
from vauban.text.pii import Pii, load_pii
from vauban.text.sanitize import Sanitizer
from vauban.types import (
    Action,
    Caller,
    Evidence,
    Level,
    Mode,
    Origin,
    Reason,
    Segment,
    Signal,
    Verdict,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vauban.access.approval import Approval, Approvals, Call
    from vauban.access.tool_rules import ToolRules
    from vauban.detectors.encoder import Encoded
    from vauban.detectors.extraction.detector import ExtractionDetector

logger = logging.getLogger(__name__)

INJECTION = "injection"
_END_CHARS = 300
_BLOCKED = {
    Reason.PROMPT_INJECTION: "The request was blocked: it reads like a prompt injection.",
    Reason.UNREAD_TEXT: "The request was blocked: it hides more text than can be screened.",
}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading:
    """What the guard made of the text of one request.

    `texts` is parallel to the segments: what the model gets. `windows` is what the encoder must
    see. `complete` is False when some hidden text could not be read within the policy's bounds.
    """

    texts: tuple[str, ...]
    windows: Windows
    findings: Mapping[str, int] = field(default_factory=dict)
    complete: bool = True


class Guard:
    """Reads and judges. Holds no model: the host says where the encoder runs.

    :param control_tokens: the served tokenizer's own special tokens, neutralised in user text.
    :raises WeightsError: the encoder's configuration or tokenizer is missing or damaged.
    """

    def __init__(self, policy: Policy, control_tokens: Sequence[str] = ()) -> None:
        self.policy = policy
        self._normalize = Normalizer(policy.normalize, control_tokens)
        self._tokenize = WindowTokenizer.load(policy.encoder)
        config = checkpoint.read_config(policy.encoder.weights or checkpoint.shipped())
        rules = policy.injection
        self.block_at = config.block_at if rules.block_at is None else rules.block_at
        flag_at = config.flag_at if rules.flag_at is None else rules.flag_at
        self.flag_at = min(flag_at, self.block_at)
        self._pii: Pii | None = None

    def read(self, segments: Sequence[Segment]) -> Reading:
        """Clean every untrusted segment and cut what it says, hidden text included, into windows.

        Trusted segments pass unchanged and are not screened.

        :raises RequestTooLarge: more segments or characters than the policy allows.
        """
        self._check_size(segments)
        texts: list[str] = []
        views: list[str] = []
        whole: list[tuple[Origin, str]] = []
        parts: dict[str, list[str]] = {}
        findings: Counter[str] = Counter()
        complete = True
        for segment in segments:
            if segment.origin.trusted:
                texts.append(segment.text)
                continue
            normalized = self._normalize(segment.text)
            texts.append(normalized.model)
            if segment.part_of and normalized.guard:
                parts.setdefault(segment.part_of, []).append(normalized.guard[0])
                views.extend(normalized.guard[1:])
            else:
                views.extend(normalized.guard)
                whole.extend((segment.origin, view) for view in normalized.guard[:1])
            findings.update(normalized.findings)
            complete = complete and normalized.complete
        views.extend("\n".join(pieces) for pieces in parts.values())
        views.extend(_across(whole))
        windows = self._tokenize(list(dict.fromkeys(views)) if self.policy.encodes else [])
        return Reading(tuple(texts), windows, dict(findings), complete)

    def spells_control_token(self, text: str) -> bool:
        """Whether cleaned pieces, put one after the other, make a chat-template control token."""
        return self._normalize.neutralises(text)

    def screen_output(
        self, operator_texts: Iterable[str] = (), canaries: Iterable[str] = ()
    ) -> Sanitizer:
        """The rules for one answer; the host opens a reader of it for each channel.

        :param operator_texts: what the model was told and must not repeat.
        :param canaries: marks that were put into these texts.
        """
        if self._pii is None and self.policy.output.pii != "off":
            self.open_output(secrets.token_bytes(32))
        return Sanitizer(self.policy.output, operator_texts, canaries, self._pii)

    def open_output(self, secret: bytes) -> None:
        """Load what reads answers.

        :param secret: keys the codes of personal data.
        :raises ConfigError: the policy asks for what is not installed.
        """
        self._pii = load_pii(self.policy.output, secret)

    def judge(self, outcome: float | Reason) -> Verdict:
        """What an encoder's score, or its failure, means under the policy.

        This is the fail-closed rule: a failure blocks unless the operator wrote
        `injection.on_failure: allow`.
        """
        rules = self.policy.injection
        if rules.mode is Mode.OFF:
            return Verdict(Action.ALLOW, Reason.OFF, Action.ALLOW)
        if isinstance(outcome, Reason):
            proposed = Action.ALLOW if rules.on_failure == "allow" else Action.BLOCK
            signal = Signal(INJECTION, 1.0, proposed, outcome)
        else:
            signal = self._signal(outcome)
        enforced = rules.mode is Mode.ENFORCE
        action = signal.action if enforced else min(signal.action, Action.FLAG)
        return Verdict(action, signal.reason, signal.action, (signal,))

    def _signal(self, score: float) -> Signal:
        if not 0.0 <= score <= 1.0:  # also true for NaN
            return Signal(INJECTION, 1.0, Action.BLOCK, Reason.SCREEN_FAILED)
        if score >= self.block_at:
            return Signal(INJECTION, score, Action.BLOCK, Reason.PROMPT_INJECTION)
        if score >= self.flag_at:
            return Signal(INJECTION, score, Action.FLAG, Reason.SUSPICIOUS)
        return Signal(INJECTION, score, Action.ALLOW, Reason.CLEAN)

    def _check_size(self, segments: Sequence[Segment]) -> None:
        limits = self.policy.limits
        if len(segments) > limits.max_segments:
            raise RequestTooLarge(
                f"the request has {len(segments)} pieces of text; at most"
                f" {limits.max_segments} are served"
            )
        characters = sum(len(segment.text) for segment in segments)
        if characters > limits.max_text_chars:
            raise RequestTooLarge(
                f"the request has {characters} characters of text; at most"
                f" {limits.max_text_chars} are served"
            )


def blocked_sentence(reason: Reason) -> str:
    """What a client is told of a block."""
    return _BLOCKED.get(reason, "The request was blocked: it could not be screened.")


class Standings(Protocol):
    """Tells how callers are treated; see `access.ledger.Ledger`."""

    def standing(self, principal_id: str) -> Standing:
        """:raises StateUnavailable: it can't be known now."""

    def remembered(self, principal_id: str) -> Standing:
        """What was last known."""


def standing_of(ledger: Standings, principal_id: str, policy: StatePolicy) -> Standing:
    """How a caller is treated; the fail-closed rule for a store that is lost.

    What was last known of the caller counts in any case: losing the store lifts no ban.

    :raises StandingUnknown: it can't be known, and the policy doesn't say to go on without.
    """
    try:
        return ledger.standing(principal_id)
    except StateUnavailable:
        if policy.on_failure == "block":
            raise StandingUnknown("who may use this server can't be looked up now") from None
    known = ledger.remembered(principal_id)
    if policy.on_failure == "degrade" and known.level < Level.DEGRADED:
        return Standing(principal_id, Level.DEGRADED)
    return known


def unwatched(standing: Standing, policy: ExtractionPolicy) -> Standing:
    """How a caller is treated while the extraction detector fails; its fail-closed rule."""
    if policy.mode is not Mode.ENFORCE or policy.on_failure == "allow":
        return standing
    if standing.level >= Level.DEGRADED:
        return standing
    return Standing(standing.principal, Level.DEGRADED)


def rule_on_call(rules: ToolRules, tool: str, arguments: str, *, tainted: bool) -> Ruling:
    """What a tool call means; the fail-closed rule for one that can't be judged: it is denied."""
    ruling = _attempt("judging a tool call", lambda: rules.judge(tool, arguments, tainted=tainted))
    return Ruling(ToolDecision.DENY, Why.FAILED) if ruling is None else ruling


def hold_calls(
    approvals: Approvals, tenant: str, calls: Sequence[Call], *, form: str = "", answer: bytes = b""
) -> Approval | Why:
    """Keep calls, or an answer, for approval; the fail-closed rule for what can't be kept: it is
    denied, for the reason that is given."""
    try:
        return approvals.hold(tenant, calls, form=form, answer=answer)
    except TooManyApprovals:
        return Why.TOO_MANY
    except StateUnavailable:
        return Why.FAILED


def _across(texts: Sequence[tuple[Origin, str]]) -> list[str]:
    """Texts in sequence read as one, so that an attack cut over turns or results is seen whole.

    Once all of them, once those of one origin (a client's own turns, whatever the assistant said
    in between). Only both ends of a long text are taken: it has been read by itself, and what is
    cut crosses a border. So this at most doubles, for two origins triples, what is read.
    """
    ends = [(origin, _ends(text)) for origin, text in texts]
    groups = [[text for _, text in ends]]
    groups += [[text for o, text in ends if o is origin] for origin in dict(ends)]
    return ["\n".join(group) for group in groups if len(group) > 1]


def _ends(text: str) -> str:
    if len(text) <= 2 * _END_CHARS:
        return text
    return f"{text[:_END_CHARS]}\n{text[-_END_CHARS:]}"


def encode_each(
    encode: Callable[[Sequence[Windows]], Sequence[Encoded]], batch: Sequence[Windows]
) -> list[Encoded | Reason]:
    """Encode a batch; a request that breaks the encoder fails alone, not its neighbours.

    Any exception of the encoder becomes `Reason.SCREEN_FAILED`, and `Guard.judge` must hear of it.
    """

    def work() -> list[Encoded]:
        encoded = list(encode(batch))
        if len(encoded) != len(batch):
            raise ScreeningFailed("the encoder answered for another number of requests")
        return encoded

    encoded = _attempt("screening", work)
    if encoded is not None:
        return list(encoded)
    if len(batch) > 1:
        return [outcome for one in batch for outcome in encode_each(encode, [one])]
    return [Reason.SCREEN_FAILED]


class Seen(Protocol):
    """What the extraction detector is told of a request; see `Encoded`."""

    @property
    def embedding(self) -> NDArray[np.float32] | None: ...

    @property
    def parts(self) -> NDArray[np.float32] | None: ...


def watch_each(
    detector: ExtractionDetector,
    callers: Sequence[Caller | None],
    outcomes: Sequence[Seen | Reason],
) -> list[Evidence | Reason | None]:
    """Tell the extraction detector of a batch; what is known of each caller then.

    A detector that fails has seen nothing of this batch: `Reason.WATCH_FAILED` for all of it, and
    the policy says what that means. None: nobody was named, or there was nothing to learn.
    """
    from vauban.detectors.extraction.detector import Query  # loads faiss

    queries: list[tuple[int, Query]] = []
    for index, (caller, outcome) in enumerate(zip(callers, outcomes, strict=True)):
        if caller is None or isinstance(outcome, Reason) or outcome.embedding is None:
            continue
        rows = [outcome.embedding]
        if caller.prompts > 1 and outcome.parts is not None:
            # Their mean would be one harmless query, however many prompts are sent at once.
            rows = list(outcome.parts)
        queries += [(index, Query(caller, row)) for row in rows]
    found: list[Evidence | Reason | None] = [None] * len(callers)
    known = _attempt("extraction detection", lambda: detector.observe([q for _, q in queries]))
    for place, (index, _) in enumerate(queries):
        found[index] = Reason.WATCH_FAILED if known is None else known[place]
    return found


def _attempt(what: str, work: Callable[[], T]) -> T | None:
    """The result, or None when a detector died of anything at all (out of memory, a CUDA fault, a
    bug): it has not seen these requests, and the caller must say so."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - the one fail-closed handler
        logger.error("%s failed: %s", what, type(error).__name__)  # no text, so no message
        return None
