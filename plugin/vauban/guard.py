"""The composition root: text in, verdict out, and the one fail-closed rule.

A host translates a request into segments, asks `Guard.read` what the model may get and what the
encoder must see, has the windows encoded (`encode_each`, usually through a `ScreenQueue`), and
asks `Guard.judge` what the outcome means. Nothing else in vauban turns a failure into a verdict.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vauban.detectors import checkpoint
from vauban.detectors.windows import Windows, WindowTokenizer
from vauban.errors import RequestTooLarge, ScreeningFailed
from vauban.policy import Policy
from vauban.text.normalize import Normalizer
from vauban.text.sanitize import Sanitizer
from vauban.types import Action, Mode, Origin, Reason, Segment, Signal, Verdict

if TYPE_CHECKING:
    from vauban.detectors.encoder import Encoded

logger = logging.getLogger(__name__)

INJECTION = "injection"
_END_CHARS = 300


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
        screened = self.policy.injection.mode is not Mode.OFF
        windows = self._tokenize(list(dict.fromkeys(views)) if screened else [])
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
        return Sanitizer(self.policy.output, operator_texts, canaries)

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

    Any exception of the encoder becomes `Reason.SCREEN_FAILED`: whatever a detector dies of
    (out of memory, a CUDA fault, a bug), the request was not screened, and `Guard.judge` must
    hear of it.
    """
    try:
        encoded = list(encode(batch))
        if len(encoded) != len(batch):
            raise ScreeningFailed("the encoder answered for another number of requests")
    except Exception as error:  # noqa: BLE001 - the one fail-closed handler
        if len(batch) > 1:
            return [outcome for one in batch for outcome in encode_each(encode, [one])]
        logger.error("screening failed: %s", type(error).__name__)  # no text, so no message
        return [Reason.SCREEN_FAILED]
    return list(encoded)
