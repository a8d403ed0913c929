"""Chat templates with the constraints of the model families, probed and then framed end to end.

The templates are minimal: they have the roles, the order rules and the refusals of their family.
Structured tool calls are not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pydoc_data.topics import topics
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vauban.policy import SandwichPolicy
from vauban.text.sandwich import RULE, Framed, Level, Sandwich
from vauban.text.template_probe import TemplateCapabilities, probe_template
from vauban.types import Origin, Segment

CHATML = """\
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""

# Brings a system text of its own where the request has none.
QWEN = (
    """\
{%- if messages[0].role != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
"""
    + CHATML
)

# Qwen 3.5: a system message anywhere but in front raises.
QWEN_STRICT = """\
{%- for m in messages -%}
{%- if m.role == 'system' and not loop.first -%}
{{ raise_exception('System message must be at the beginning.') }}
{%- endif -%}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""

LLAMA_3 = """\
{{- bos_token -}}
{%- for m in messages -%}
<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content | trim }}<|eot_id|>
{%- endfor -%}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif -%}"""

# A system text is moved in front and printed whether or not there is one.
LLAMA_3_1 = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
{%- set system = messages[0].content -%}{%- set messages = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- endif -%}
<|start_header_id|>system<|end_header_id|>

Today: 26 Jul 2024

{{ system }}<|eot_id|>
{%- for m in messages -%}
<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content | trim }}<|eot_id|>
{%- endfor -%}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif -%}"""

_ALTERNATION = """\
{%- for m in messages -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
"""
_TAKE_SYSTEM = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
{%- set system = messages[0].content -%}{%- set messages = messages[1:] -%}
{%- endif -%}
"""

# The system text is part of the first user turn.
MISTRAL = (
    _TAKE_SYSTEM
    + _ALTERNATION
    + """\
{%- if m.role == 'user' -%}
[INST] {% if loop.first and system is defined %}{{ system }}

{% endif %}{{ m.content }}[/INST]
{%- elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}
{%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif -%}
{%- endfor -%}"""
)

# v0.3: ... of the last user turn, behind all the earlier ones.
MISTRAL_LAST = MISTRAL.replace("loop.first and", "loop.last and")

# v7: a late system message is taken, and printed behind the cue for the answer.
MISTRAL_7 = """\
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}[INST]{{ m.content }}[/INST]
{%- elif m.role == 'system' -%}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]
{%- else -%}{{ m.content }}{{ eos_token }}{%- endif -%}
{%- endfor -%}"""

GEMMA = (
    """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
{{ raise_exception('System role not supported') }}
{%- endif -%}
"""
    + _ALTERNATION
    + """\
<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<end_of_turn>
{% endfor -%}
{%- if add_generation_prompt %}<start_of_turn>model
{% endif -%}"""
)

PHI_3 = """\
{%- for m in messages -%}
{%- if m.role == 'system' -%}<|system|>
{{ m.content }}<|end|>
{% elif m.role == 'user' -%}<|user|>
{{ m.content }}<|end|>
{% elif m.role == 'assistant' -%}<|assistant|>
{{ m.content }}<|end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>
{% endif -%}"""

ZEPHYR = """\
{%- for m in messages -%}
<|{{ m.role }}|>
{{ m.content }}{{ eos_token }}
{% if loop.last and add_generation_prompt %}<|assistant|>
{% endif -%}
{%- endfor -%}"""

# All system texts are gathered in front, late ones as well.
DEEPSEEK = """\
{%- set ns = namespace(system='') -%}
{%- for m in messages if m.role == 'system' -%}
{%- set ns.system = ns.system + m.content + '\n\n' -%}
{%- endfor -%}
{{- bos_token }}{{ ns.system -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}<|User|>{{ m.content }}
{%- elif m.role == 'assistant' -%}<|Assistant|>{{ m.content }}{{ eos_token }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|Assistant|>{% endif -%}"""

LLAMA_2 = (
    _TAKE_SYSTEM
    + _ALTERNATION
    + """\
{%- set content = m.content -%}
{%- if loop.first and system is defined -%}
{%- set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content -%}
{%- endif -%}
{%- if m.role == 'user' -%}{{ bos_token }}[INST] {{ content }} [/INST]
{%- elif m.role == 'system' %}{{ '<<SYS>>\n' + content + '\n<</SYS>>\n\n' }}
{%- else %} {{ content }} {{ eos_token }}{%- endif -%}
{%- endfor -%}"""
)

# Only user and assistant are known; any other message disappears without an error.
DROPS_SYSTEM = """\
{%- for m in messages if m.role in ('user', 'assistant') -%}
{{ m.role }}: {{ m.content }}
{% endfor -%}
{%- if add_generation_prompt %}assistant: {% endif -%}"""

# The cue for the answer belongs to a user turn that comes last.
CUE_WITH_USER = CHATML.replace(
    "if add_generation_prompt", "if add_generation_prompt and messages[-1].role == 'user'"
)

# name: template, system at the start, late system
TEMPLATES: dict[str, tuple[str, bool, bool]] = {
    "chatml": (CHATML, True, True),
    "qwen": (QWEN, True, True),
    "qwen_strict": (QWEN_STRICT, True, False),
    "llama_3": (LLAMA_3, True, True),
    "llama_3_1": (LLAMA_3_1, True, True),
    "mistral": (MISTRAL, True, False),
    "mistral_last": (MISTRAL_LAST, False, False),
    "mistral_7": (MISTRAL_7, True, False),
    "gemma": (GEMMA, False, False),
    "phi_3": (PHI_3, True, True),
    "zephyr": (ZEPHYR, True, True),
    "deepseek": (DEEPSEEK, True, False),
    "llama_2": (LLAMA_2, True, False),
    "drops_system": (DROPS_SYSTEM, False, False),
    "cue_with_user": (CUE_WITH_USER, True, False),
}
CONTROL_TOKENS = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<start_of_turn>",
    "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|User|>",
    "<|Assistant|>",
]  # fmt: skip

Message = Mapping[str, str]
QUESTION = "What is the capital of France?"
CONVERSATIONS: dict[str, list[Message]] = {
    "one turn": [{"role": "user", "content": QUESTION}],
    "three turns": [
        {"role": "user", "content": "Good morning."},
        {"role": "assistant", "content": "Good morning! How can I help?"},
        {"role": "user", "content": QUESTION},
    ],
}


def renderer(template: str) -> Callable[[Sequence[Message]], str]:
    """Compiled as transformers does it."""
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    env.globals["raise_exception"] = refuse
    compiled = env.from_string(template)

    def render(messages: Sequence[Message]) -> str:
        return compiled.render(
            messages=list(messages), add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
        )

    return render


def frame(messages: Sequence[Message], sandwich: Sandwich) -> tuple[list[dict[str, str]], Framed]:
    """What a host does: texts to segments, and the frame back into the messages."""
    has_system = messages[0]["role"] == "system"
    segments = [
        Segment(m["content"], Origin.OPERATOR if m["role"] == "system" else Origin.USER)
        for m in messages
    ]
    answers = {i for i, m in enumerate(messages) if m["role"] == "assistant"}
    framed = sandwich.chat(segments, has_system=has_system, keep=answers)
    out = [{**m, "content": text} for m, text in zip(messages, framed.texts, strict=True)]
    if framed.system is not None:
        if has_system:
            out[0]["content"] += "\n" + framed.system
        else:
            out.insert(0, {"role": "system", "content": framed.system})
    if framed.reminder is not None:
        out.append({"role": "system", "content": framed.reminder})
    return out, framed


@pytest.fixture(scope="module")
def count_tokens() -> Callable[[str], int]:
    """A byte-level BPE that knows English (the interpreter's own manual) and control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        topics.values(),
        trainers.BpeTrainer(
            vocab_size=8000,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=CONTROL_TOKENS,
            show_progress=False,
        ),
    )
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("family", TEMPLATES)
def test_capabilities(family: str) -> None:
    template, system, late_system = TEMPLATES[family]
    found = probe_template(renderer(template), len)
    assert (found.system, found.late_system) == (system, late_system)


def test_overheads_are_what_the_template_writes(count_tokens: Callable[[str], int]) -> None:
    found = probe_template(renderer(LLAMA_3), count_tokens)
    written = count_tokens("<|start_header_id|>system<|end_header_id|>\n\n<|eot_id|>")
    # Line breaks merge differently in front of text than in front of a control token.
    assert written <= found.system_overhead_tokens <= written + 1
    assert written <= found.late_overhead_tokens <= written + 1
    # A system text of the template's own goes away when there is another one.
    assert probe_template(renderer(QWEN), count_tokens).system_overhead_tokens == 0
    assert probe_template(renderer(GEMMA), count_tokens) == TemplateCapabilities()


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("family", TEMPLATES)
def test_rules_before_and_reminder_after(
    family: str, conversation: str, count_tokens: Callable[[str], int]
) -> None:
    render = renderer(TEMPLATES[family][0])
    messages = CONVERSATIONS[conversation]
    policy = SandwichPolicy(
        instruction="You answer questions on geography.",
        reminder="Geography only!",
        max_added_tokens=128,
    )
    sandwich = Sandwich(policy, probe_template(render, count_tokens), count_tokens)
    assert sandwich.level is Level.FULL
    framed_messages, framed = frame(messages, sandwich)
    prompt = render(framed_messages)
    places = [
        prompt.index(part)
        for part in (
            "You answer questions on geography.", RULE, f"<<{framed.fence}\n{QUESTION}",
            f"{QUESTION}\n{framed.fence}", "Geography only!",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    first = messages[0]["content"]
    assert prompt.index(RULE) < prompt.index(first)
    for message in messages:
        assert prompt.count(message["content"]) == 1
    # The model is asked for its turn in the same words as ever.
    assert prompt.endswith(render(messages).rpartition(QUESTION)[2])


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize(
    ("family", "has_system"),
    [(family, False) for family in TEMPLATES]
    + [(family, True) for family, (_, system, _) in TEMPLATES.items() if system],
)
def test_rendered_growth_is_reported_and_within_budget(
    family: str, conversation: str, has_system: bool, count_tokens: Callable[[str], int]
) -> None:
    render = renderer(TEMPLATES[family][0])
    capabilities = probe_template(render, count_tokens)
    messages = list(CONVERSATIONS[conversation])
    if has_system:
        messages.insert(0, {"role": "system", "content": "Be brief."})
    policy = SandwichPolicy()
    framed_messages, framed = frame(messages, Sandwich(policy, capabilities, count_tokens))
    growth = count_tokens(render(framed_messages)) - count_tokens(render(messages))
    assert growth <= framed.added_tokens <= policy.max_added_tokens


@settings(max_examples=25, deadline=None)
@given(
    turns=st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=5),
    family=st.sampled_from(sorted(TEMPLATES)),
)
def test_framing_never_makes_a_template_refuse(turns: list[str], family: str) -> None:
    render = renderer(TEMPLATES[family][0])

    def count_tokens(text: str) -> int:
        return len(text) // 5

    sandwich = Sandwich(SandwichPolicy(), probe_template(render, count_tokens), count_tokens)
    turns = turns[: len(turns) - (len(turns) % 2 == 0)]  # the last turn is the user's
    messages: list[Message] = [
        {"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)
    ]
    framed_messages, framed = frame(messages, sandwich)
    prompt = render(framed_messages)
    assert prompt.index(RULE) < prompt.index(f"<<{framed.fence}\n")
    assert prompt.rindex("under the rules above.") > prompt.rindex(f"\n{framed.fence}")


def test_a_template_that_refuses_everything_gets_user_turns_only() -> None:
    def render(messages: Sequence[Message]) -> str:
        raise jinja2.UndefinedError("no")

    assert probe_template(render, len) == TemplateCapabilities()


def test_a_template_that_prints_nothing_gets_user_turns_only() -> None:
    assert probe_template(lambda _: "", len) == TemplateCapabilities()


def test_what_is_no_refusal_passes_through() -> None:
    class Bug(Exception):
        pass

    def render(messages: Sequence[Message]) -> str:
        raise Bug

    with pytest.raises(Bug):
        probe_template(render, len)
    assert probe_template(render, len, refusals=(Bug,)) == TemplateCapabilities()


@pytest.mark.parametrize("broken", ["{{ messages[0].content + 1 }}", "{{ messages[9].content }}"])
def test_python_errors_of_a_template_are_refusals(broken: str) -> None:
    assert probe_template(renderer(broken), len) == TemplateCapabilities()


def test_content_as_parts_is_the_renderers_business() -> None:
    template = renderer("{% for m in messages %}[{{ m.role }}]{{ m.content[0].text }}{% endfor %}")

    def render(messages: Sequence[Message]) -> str:
        parts: list[Any] = [
            {**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages
        ]
        return template(parts)

    found = probe_template(render, len)
    assert (found.system, found.late_system) == (True, True)
