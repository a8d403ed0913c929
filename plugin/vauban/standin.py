"""A stand-in model made on the spot, so that a real server can be started without a download.

A two-layer Llama with random weights from a fixed seed, a byte-level BPE tokenizer trained on
sentences generated here, and a ChatML-style chat template. Its words mean nothing; everything
around it (engine, scheduler, sampler, routes) is the real server.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

SEED = 20_403
VOCABULARY = 1_024
MAX_MODEL_LEN = 16_384

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% elif message['content'] %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SUBJECTS = (
    "The harbour master",
    "A young baker",
    "The committee",
    "Our neighbour",
    "The engineer",
    "The museum guide",
    "A travelling teacher",
    "The gardener",
    "The river",
    "The old clock",
)
_VERBS = (
    "described",
    "repaired",
    "measured",
    "painted",
    "remembered",
    "followed",
    "collected",
    "explained",
    "carried",
    "recorded",
)
_OBJECTS = (
    "the northern bridge",
    "a basket of pears",
    "the quarterly report",
    "three small boats",
    "the history of the mill",
    "a letter from the coast",
    "the temperature of the lake",
    "an unfinished map",
    "the village accounts",
    "a collection of stones",
)
_ENDINGS = (
    "before the rain began",
    "with great patience",
    "in the early morning",
    "for the third time",
    "without any help",
    "as the market opened",
    "during the long winter",
    "after a careful inspection",
    "while the children watched",
    "according to the plan",
)


def prose(words: int, seed: int = 0) -> str:
    """Harmless English-looking text of at least `words` words, the same for the same seed."""
    choose = random.Random(seed)  # noqa: S311 - filler text, nothing depends on it being secret
    sentences: list[str] = []
    count = 0
    while count < words:
        parts = (
            choose.choice(_SUBJECTS),
            choose.choice(_VERBS),
            choose.choice(_OBJECTS),
            choose.choice(_ENDINGS),
        )
        sentence = " ".join(parts) + "."
        count += len(sentence.split())
        sentences.append(sentence)
    return " ".join(sentences)


def make_standin(directory: Path, architecture: str = "LlamaForCausalLM") -> Path:
    """Write the model into `directory` unless the same one is already there; return `directory`.

    :param architecture: the class that vLLM serves it with.
    :raises OSError: the directory can't be written.
    """
    stamp = directory / "standin.sha256"
    wanted = hashlib.sha256(Path(__file__).read_bytes() + architecture.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(directory)
    _write_model(directory, architecture)
    stamp.write_text(wanted)
    return directory


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a stand-in, with its chat template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    own_words = Path(__file__).read_text(encoding="utf-8")
    tokenizer.train_from_iterator([prose(20_000, SEED), own_words], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106 - a token of a vocabulary
        pad_token="<|endoftext|>",  # noqa: S106
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)


def _write_model(directory: Path, architecture: str) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=MAX_MODEL_LEN,
        eos_token_id=SPECIAL_TOKENS.index("<|im_end|>"),
        bos_token_id=None,
        tie_word_embeddings=False,
        architectures=[architecture],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        weights = LlamaForCausalLM(config).state_dict()
    config.save_pretrained(directory)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
