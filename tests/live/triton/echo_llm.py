"""Stands where the LLM does: repeats its input word by word, and tells how far it came.

The input `hold N` waits N tenths of a second before every word.
"""

import asyncio
import json
import threading
from pathlib import Path

import triton_python_backend_utils as pb_utils

from vauban.hosts.triton.bls import CANCEL, Wire, let_go
from vauban.hosts.triton.requests import read_parameters

WORDS = 50


class TritonPythonModel:
    def initialize(self, args):
        self._wire = Wire(pb_utils)
        self._said = Path(args["model_repository"]) / "said.txt"
        self._running = {}
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            if ended := read_parameters(request.parameters()).get(CANCEL):
                self._loop.call_soon_threadsafe(self._cancel, ended)
                self._wire.end(sender)
                continue
            values = {k: v.reshape(-1)[0] for k, v in self._wire.values(request).items()}
            work = self._serve(sender, values, request.request_id())
            asyncio.run_coroutine_threadsafe(work, self._loop)

    def finalize(self):
        let_go()

    def _cancel(self, name):
        if task := self._running.get(name):
            task.cancel()

    async def _serve(self, sender, values, name):
        self._running[name] = asyncio.current_task()
        text = values["text_input"].decode()
        _, _, wait = text.rpartition("hold ")
        seconds = int(wait) / 10 if wait.isdecimal() else 0
        said = []
        try:
            json.loads(values["sampling_parameters"])
            for number in range(WORDS if seconds else 3):
                await asyncio.sleep(seconds)
                said.append(f"w{number} ")
                if values["stream"]:
                    sender.send(self._wire.answer({"text_output": [said[-1]]}))
            if not values["stream"]:
                sender.send(self._wire.answer({"text_output": ["".join(said)]}))
        except asyncio.CancelledError:
            said.append("cancelled")
        finally:
            self._running.pop(name, None)
            with self._said.open("a") as file:
                file.write(f"{len(said)} {said[-1:]}\n")
            self._wire.end(sender)
