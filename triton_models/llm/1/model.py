"""llm: vLLM's AsyncLLM behind the inputs and outputs of Triton's own vLLM backend.

For machines without that backend, the CPU ones above all. The engine is the real one; vauban's
engine half is in it, as in every vLLM beside which vauban is installed.
"""

import asyncio
import functools
import json
import locale
import os
import threading
import uuid
from collections import deque

import triton_python_backend_utils as pb_utils

from vauban.hosts.triton.bls import CANCEL, ID_CHARS, SALT, Wire, let_go
from vauban.hosts.triton.requests import read_parameters
from vauban.hosts.triton.settings import engine_fields, policy_of, texts_of

EARLY_CANCELS = 1024
"""How many ids are remembered that were cancelled when no such request was here."""


class TritonPythonModel:
    def initialize(self, args):
        # The backend starts Python without the environment's locale, so files are read as ASCII.
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
        os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        self._config = json.loads(args["model_config"])
        self._wire = Wire(pb_utils)
        self._running = {}
        self._cancelled = deque(maxlen=EARLY_CANCELS)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="llm", daemon=True).start()
        self._engine = self._run(self._start()).result()

    async def _start(self):
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        texts = texts_of(self._config)
        length = int(texts.get("MAX_MODEL_LEN") or 0)
        arguments = AsyncEngineArgs(
            model=texts["MODEL"],
            max_model_len=length or None,
            dtype="float32",
            enforce_eager=True,
            additional_config={"vauban": engine_fields(policy_of(self._config))},
        )
        return AsyncLLM.from_engine_args(arguments)

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            parameters = read_parameters(request.parameters())
            if ended := parameters.get(CANCEL):
                self._loop.call_soon_threadsafe(self._cancel, ended)
                self._wire.end(sender)
                continue
            values = {k: v.reshape(-1)[0] for k, v in self._wire.values(request).items()}
            self._loop.call_soon_threadsafe(
                self._begin, sender, values, parameters.get(SALT), request.request_id()
            )

    def finalize(self):
        self._loop.call_soon_threadsafe(self._engine.shutdown)
        let_go()

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _begin(self, sender, values, salt, name):
        if name in self._cancelled:
            self._cancelled.remove(name)
            self._wire.end(sender)
            return
        task = self._loop.create_task(self._generate(sender, values, salt))
        self._running[name] = task
        # A task that is cancelled before it has begun never runs a line of its own.
        task.add_done_callback(functools.partial(self._end, sender, name))

    def _cancel(self, name):
        if task := self._running.get(name):
            task.cancel()
        elif len(name) == ID_CHARS:  # overtaken on its way here, or ended meanwhile
            self._cancelled.append(name)

    def _end(self, sender, name, task):
        self._running.pop(name, None)
        if task.cancelled():
            self._wire.end(sender)
        elif error := task.exception():
            self._fail(sender, error)
        else:
            self._wire.end(sender, task.result())

    def _fail(self, sender, error):
        kind = (
            pb_utils.TritonError.INVALID_ARG
            if isinstance(error, (ValueError, TypeError))
            else (pb_utils.TritonError.INTERNAL)
        )
        found = pb_utils.TritonError(f"{type(error).__name__}: {error}", kind)
        self._wire.end(sender, pb_utils.InferenceResponse(error=found))

    async def _generate(self, sender, values, salt):
        """Sends all but the last response, and gives that back."""
        from vllm.sampling_params import RequestOutputKind

        stream = bool(values.get("stream", False))
        params = _sampling(json.loads(values.get("sampling_parameters", b"{}") or b"{}"))
        params.output_kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        prompt = values["text_input"].decode()
        before = "" if stream or values.get("exclude_input_in_output", False) else prompt
        given = {"prompt": prompt, "cache_salt": salt} if salt else {"prompt": prompt}
        async for output in self._engine.generate(given, params, str(uuid.uuid4())):
            if sender.is_cancelled():
                return None
            response = self._wire.answer(self._answer(output, values, before))
            if output.finished:
                return response
            sender.send(response)
        return None

    @staticmethod
    def _answer(output, values, before):
        found = {"text_output": [before + one.text for one in output.outputs]}
        if values.get("return_finish_reason", False):
            found["finish_reason"] = [str(one.finish_reason) for one in output.outputs]
        if values.get("return_num_input_tokens", False):
            found["num_input_tokens"] = [len(output.prompt_token_ids)]
        if values.get("return_num_output_tokens", False):
            found["num_output_tokens"] = [len(one.token_ids) for one in output.outputs]
        return found


def _sampling(options):
    """Checked, as vLLM's own routes check them: the engine dies of a value of another type.

    :raises ValueError: a name that there is not, or a value that it can't have.
    """
    names, adapter = _parameters()
    if unknown := set(options) - names:
        raise ValueError(f"there is no sampling parameter {min(unknown)[:40]}")
    return adapter.validate_python(options)


@functools.cache  # an adapter takes 15 ms to make
def _parameters():
    """The names that there are, and what checks their values."""
    from pydantic import TypeAdapter
    from vllm import SamplingParams

    names = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
    return names, TypeAdapter(SamplingParams)
