"""llm-guard's PromptInjection scanner with vauban's encoder as its model, behind HTTP.

Runs in llm-guard's own environment, with `plugin` on the path, and answers as `peer.classifier`
does. The model is the same network with the same weights and calibration, so the same scores for
the same text; everything else is llm-guard's own: its Hugging Face pipeline, one text a pass as it
has it by default, and `match_type="chunks"` (256 characters, overlap 25), the only one of its ways
of reading that leaves nothing unread. One scan at a time: on few cores, scans side by side only
make each other late.

LLM_GUARD_THRESHOLD=0.9 python llm_guard_server.py PORT MODEL_DIRECTORY
"""

from __future__ import annotations

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from llm_guard.input_scanners.prompt_injection import MatchType, PromptInjection
from llm_guard.model import Model
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from vauban.detectors import checkpoint
from vauban.detectors.bert import EncoderModel

MODEL_TYPE = "vauban-encoder"
LABELS = {0: "SAFE", 1: "INJECTION"}


class EncoderConfig(PretrainedConfig):
    model_type = MODEL_TYPE


class EncoderClassifier(PreTrainedModel):
    """The shipped encoder as transformers' classifiers are called. Two logits, whose softmax is
    the calibrated score."""

    config_class = EncoderConfig

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        directory = checkpoint.shipped()
        settings = checkpoint.read_config(directory)
        tensors = checkpoint.read_tensors(directory, settings)
        self.network = EncoderModel.build(settings.architecture, tensors)
        self.calibration = settings.calibration

    @classmethod
    def from_pretrained(cls, *_: Any, config: EncoderConfig, **__: Any) -> EncoderClassifier:
        return cls(config).eval()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any
    ) -> SequenceClassifierOutput:
        logits, _embeddings = self.network(input_ids, attention_mask.bool())
        scaled = logits / self.calibration.temperature + self.calibration.bias
        return SequenceClassifierOutput(logits=torch.stack((torch.zeros_like(scaled), scaled), -1))


def write_model(directory: Path) -> int:
    """What `from_pretrained` reads; returns the longest window in tokens."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = checkpoint.read_config(checkpoint.shipped())
    tokenizer = checkpoint.read_tokenizer(checkpoint.shipped(), settings)
    config = EncoderConfig(id2label=LABELS, label2id={name: n for n, name in LABELS.items()})
    config.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(tokenizer)
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]",
        "cls_token": "[CLS]", "sep_token": "[SEP]", "model_max_length": settings.window.max_tokens,
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(about))
    return settings.window.max_tokens


def scanner(directory: Path, threshold: float) -> PromptInjection:
    longest = write_model(directory)
    AutoConfig.register(MODEL_TYPE, EncoderConfig)
    AutoModelForSequenceClassification.register(EncoderConfig, EncoderClassifier)
    pipeline = {"max_length": longest, "truncation": True, "return_token_type_ids": False}
    model = Model(path=str(directory), pipeline_kwargs=pipeline)
    return PromptInjection(model=model, threshold=threshold, match_type=MatchType.CHUNKS)


class Server(ThreadingHTTPServer):
    request_queue_size = 128


def handler(scan: PromptInjection) -> type[BaseHTTPRequestHandler]:
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with one_at_a_time, torch.inference_mode():
                _, harmless, _ = scan.scan(body["text"])
            self._answer({"score": 0.0 if harmless else 1.0})

        def _answer(self, content: dict[str, float]) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing: a line per request would be in the time measured."""

    return Handler


def main() -> None:
    port, directory = int(sys.argv[1]), Path(sys.argv[2])
    scan = scanner(directory, float(os.environ["LLM_GUARD_THRESHOLD"]))
    Server(("127.0.0.1", port), handler(scan)).serve_forever()


if __name__ == "__main__":
    main()
