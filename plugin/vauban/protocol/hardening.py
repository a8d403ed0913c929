"""What a client may learn of the model's logits.

A model's hidden dimension, and its output layer up to a rotation, can be computed from whole
vectors of logits (Carlini et al. 2024, arXiv 2403.06634; Finlayson et al. 2024, arXiv 2403.09539).
An API gives them away in three ways: values of tokens of the caller's choice; a choice of tokens
that is forced on the model, whose values are then told; the likeliest tokens taken away, so that
the next ones are told. Here each answer tells at most the `top_k` likeliest tokens of a position,
whatever the caller asks for, so a vector never gets more than `top_k` known entries.

Covers: all routes and shapes, streamed or not (Triton's sampling parameters as `Shape.TOKENS`), and
stored responses; sampling at a high temperature, which makes the model say unlikely tokens (their
values are concealed). Does not cover: bisection without log-probabilities (logit_bias, a grammar or
a list of choices together with a threshold such as min_p, some 15 requests for each single value;
`logprobs.bias: refuse` and rate limits make it dearer); counting samples; vLLM's own server flag
for sampling masks; pooling models, whose answers are vectors by purpose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol, Self, TypeVar

from vauban.errors import MalformedRequest
from vauban.policy import LogprobsPolicy
from vauban.protocol.shapes import Shape

CONCEALED: Final = -9999.0
"""What OpenAI's API says for a token that is not among the likeliest."""
_INCLUDE = "message.output_text.logprobs"
_CHOSEN = ("logprob_token_ids", "prompt_logprob_token_ids")
_PROMPT = ("prompt_logprobs", "prompt_logprob_token_ids", "prompt_logprob_start")
# The last gives the raw answer and its ids beside the one that is read.
_IDS = ("return_token_ids", "return_tokens_as_token_ids", "enable_response_messages")
_BIAS = ("logit_bias", "allowed_token_ids")
_FORCING = (*_BIAS, "bad_words", "structured_outputs")
_PROMPT_ANSWERS = ("prompt_logprobs", "prompt_token_id_logprobs")
# With these a floor under the temperature would be none.
_SHARPENING = ("top_k", "top_p", "min_p", "seed", "repetition_penalty")


class Event(Protocol):
    """One event of a stream; see `hosts.vllm.rewrite.Event`."""

    data: Any

    def changed(self) -> Self: ...


E = TypeVar("E", bound=Event)


class Hardening:
    """The policy section `logprobs` for requests and answers.

    :param max_logprobs: vLLM's `--max-logprobs`; -1 = no limit. One more than is shown is asked
        of the engine, to see whether the chosen token is among those that may be shown.
    """

    def __init__(self, policy: LogprobsPolicy, max_logprobs: int = -1) -> None:
        self._policy = policy
        self._top_k = policy.top_k if max_logprobs < 0 else min(policy.top_k, max_logprobs - 1)

    def request(
        self, data: dict[str, Any], shape: Shape, *, degraded: bool = False
    ) -> LogprobEditor | None:
        """Check a request and rewrite it in place.

        :param degraded: the caller gets no log-probabilities and no bias, and a lowest temperature.
        :returns: what must edit the answer, None when nothing in it needs that.
        :raises MalformedRequest: it asks for what the policy does not serve, or for two things
            that together give the logits away.
        """
        if shape is Shape.POOLING or (self._policy.mode == "off" and not degraded):
            return None
        options = _options(data, shape)
        if degraded:
            self._degrade(data, options, shape)
            if self._policy.mode == "off":
                return None
        for fields in (data, options):
            self._check(fields)
        shown = _asked(options, shape)
        if options.get("echo") and self._policy.prompt:
            return None  # the operator serves the prompt's own values, which tell it all
        if shown is None:
            return self.stored() if options.get("echo") else None
        _check_alone(data, options)
        shown = self._top_k if shown == -1 else min(shown, self._top_k)
        name = "top_logprobs" if shape in (Shape.CHAT, Shape.RESPONSES) else "logprobs"
        options[name] = self._top_k + 1
        return LogprobEditor(max(shown, 0), self._policy.decimals, self._policy.prompt)

    def stored(self) -> LogprobEditor | None:
        """For an answer to a request that is not at hand, like a stored response."""
        if self._policy.mode == "off":
            return None
        return LogprobEditor(max(self._top_k, 0), self._policy.decimals, self._policy.prompt)

    def _check(self, fields: Mapping[str, Any]) -> None:
        refused = list(_CHOSEN)
        if not self._policy.prompt:
            refused += _PROMPT
        if not self._policy.token_ids:
            refused += _IDS
        if self._policy.bias == "refuse":
            refused += _BIAS
        for name in refused:
            if fields.get(name) not in (None, False, [], {}) or (
                name in _PROMPT and _is_number(fields.get(name))
            ):
                raise MalformedRequest(f"{name} is not served on this server", param=name)
        if fields.get("echo") and not self._policy.prompt and _is_number(fields.get("logprobs")):
            raise MalformedRequest(
                "log-probabilities of the prompt are not served: leave out echo or logprobs",
                param="echo",
            )

    def _degrade(self, data: dict[str, Any], options: dict[str, Any], shape: Shape) -> None:
        for fields in (data, options):
            for name in (*_BIAS, "bad_words", *_CHOSEN, *_PROMPT):
                if fields.get(name) not in (None, [], {}):
                    raise MalformedRequest(f"{name} is not served at present", param=name)
            for name in ("logprobs", "top_logprobs", *_SHARPENING):
                fields.pop(name, None)
            if shape is Shape.CHAT:
                fields.pop("echo", None)  # it brings the prompt's log-probabilities with it
        included = data.get("include")
        if isinstance(included, list):
            data["include"] = [name for name in included if name != _INCLUDE]
        given = options.get("temperature")
        if given is not None and not _is_number(given):
            raise MalformedRequest("temperature must be a number", param="temperature")
        options["temperature"] = max(
            1.0 if given is None else given, self._policy.degraded_temperature
        )


class LogprobEditor:
    """Trims the log-probabilities of an answer: at most `shown` alternatives for a token,
    rounded, and nothing about a token that is not among the likeliest."""

    def __init__(self, shown: int, decimals: int, prompt: bool = False) -> None:
        self._shown = shown
        self._decimals = decimals
        self._prompt = prompt
        self.stopped = False

    def event(self, event: E) -> tuple[E]:
        """See `hosts.vllm.rewrite.Editor`."""
        return (event.changed() if self.body(event.data) else event,)

    def end(self) -> tuple[()]:
        """See `hosts.vllm.rewrite.Editor`."""
        return ()

    def body(self, payload: Any) -> bool:
        """Edit a decoded body or event in place; True when something changed."""
        changed = False
        for holder in _holders(payload):
            found = holder.get("logprobs")
            if isinstance(found, dict) and "token_logprobs" in found:
                self._completion(found)
                changed = True
            elif isinstance(found, (dict, list)) and found:
                entries = found.get("content") if isinstance(found, dict) else found
                for entry in entries or []:
                    self._entry(entry)
                changed = True
            for name in _PROMPT_ANSWERS:
                if not self._prompt and holder.get(name) is not None:
                    holder[name] = None
                    changed = True
        return changed

    def _round(self, value: float) -> float:
        return round(value, self._decimals) + 0.0  # + 0.0: no negative zero

    def _entry(self, entry: dict[str, Any]) -> None:
        """One token of a chat, Responses or token-level answer."""
        listed = entry.get("top_logprobs") or []
        values = [one["logprob"] for one in listed]
        known = _is_known(entry["logprob"], values)
        others = [
            one
            for one in listed
            if known or one["logprob"] != entry["logprob"] or _name(one) != _name(entry)
        ]
        ranked = sorted(others, key=lambda one: -one["logprob"])
        entry["top_logprobs"] = ranked[: self._shown]
        for one in entry["top_logprobs"]:
            one["logprob"] = self._round(one["logprob"])
        entry["logprob"] = self._round(entry["logprob"]) if known else CONCEALED
        if not known and "rank" in entry:
            entry["rank"] = None

    def _completion(self, found: dict[str, Any]) -> None:
        """The four parallel lists of a plain completion."""
        tops = found.get("top_logprobs") or []
        values = found["token_logprobs"]
        tokens = found.get("tokens") or []
        for index, value in enumerate(values):
            top = tops[index] if index < len(tops) else None
            if value is None:  # the first token of an echoed prompt
                continue
            known = _is_known(value, list((top or {}).values()))
            values[index] = self._round(value) if known else CONCEALED
            if top is None:
                continue
            token = tokens[index] if index < len(tokens) else None
            others = [pair for pair in top.items() if known or pair != (token, value)]
            ranked = sorted(others, key=lambda pair: -pair[1])
            # Tokens with the same text are one entry here, and let a less likely one move up.
            shown = min(self._shown, len(others) - 1)
            kept = {name: self._round(number) for name, number in ranked[:shown]}
            if token is not None:  # as vLLM and OpenAI do, the chosen one is always listed
                kept.setdefault(token, values[index])
            tops[index] = kept


def _is_known(own: float, listed: list[float]) -> bool:
    """Whether the chosen token is among the likeliest: one more than these was asked for, so
    something listed must be less likely than it."""
    return any(value < own for value in listed)


def _name(entry: Mapping[str, Any]) -> Any:
    return entry.get("token_id", entry.get("token"))


def _holders(payload: Any) -> Iterator[dict[str, Any]]:
    """The objects of an answer that log-probabilities hang from, in all protocols."""
    if not isinstance(payload, dict):
        return
    yield payload
    yield from _dicts(payload.get("choices"))
    response = payload.get("response")
    outputs = [payload.get("output")]
    if isinstance(response, dict):
        outputs.append(response.get("output"))
    if isinstance(payload.get("part"), dict):
        yield payload["part"]
    items = [item for output in outputs for item in _dicts(output)]
    if isinstance(payload.get("item"), dict):
        items.append(payload["item"])
    for item in items:
        yield from _dicts(item.get("content"))


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))


def _options(data: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """Where the sampling options of a body are."""
    if shape is not Shape.TOKENS:
        return data
    options = data.setdefault("sampling_params", {})
    if not isinstance(options, dict):
        raise MalformedRequest("sampling_params must be an object", param="sampling_params")
    return options


def _asked(options: Mapping[str, Any], shape: Shape) -> int | None:
    """How many alternatives a request asks for (-1 = all), None for no log-probabilities."""
    if shape is Shape.RESPONSES:
        included = options.get("include")
        if not isinstance(included, list) or _INCLUDE not in included:
            return None
        return _whole(options, "top_logprobs") or 0
    if shape is Shape.CHAT:
        wanted = options.get("logprobs")
        if wanted is not None and not isinstance(wanted, bool):
            raise MalformedRequest("logprobs must be true or false", param="logprobs")
        return (_whole(options, "top_logprobs") or 0) if wanted else None
    if shape is Shape.ANTHROPIC:
        return None
    return _whole(options, "logprobs")


def _whole(options: Mapping[str, Any], name: str) -> int | None:
    value = options.get(name)
    if value is None:
        return None
    # vLLM takes 5.0 and true for numbers as well; a bound must not be passed that way.
    if type(value) is not int or value < -1:
        raise MalformedRequest(f"{name} must be a whole number", param=name)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_alone(data: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """:raises MalformedRequest: log-probabilities together with what changes the logits, or forces
    tokens of the caller's choice."""
    with_it = next((name for name in _FORCING if options.get(name) not in (None, [], {})), None)
    for name in ("response_format", "text"):
        value = data.get(name)
        style = value.get("format") if name == "text" and isinstance(value, dict) else value
        if isinstance(style, dict) and style.get("type") != "text":
            with_it = name
    if data.get("tools") and data.get("tool_choice") != "none":
        with_it = "tools"  # the schema of a tool is a grammar, too
    if options.get("min_tokens") and options.get("stop_token_ids"):
        with_it = "stop_token_ids"  # masked until then
    if with_it is not None:
        raise MalformedRequest(
            f"{with_it} can't be used together with log-probabilities on this server",
            param=with_it,
        )
