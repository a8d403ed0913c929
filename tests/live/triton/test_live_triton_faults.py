"""What breaks under load ends in errors and never in an answer without a verdict.

The LLM here only repeats words (`echo_llm.py`): these faults are the guard's and Triton's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tritonclient.grpc as grpcclient
from test_live_triton import BLS, BOTH, INJECTION, PLAIN, Stream, tensors
from triton_canary import ECHO_CANARY

from vauban.hosts.triton.render import ENSEMBLES

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

COMPOSED = (*ENSEMBLES, BLS)
"""What is loaded again after one of its steps."""


@pytest.fixture(scope="module")
def echo(start_triton: Any) -> Iterator[Any]:
    with start_triton(echo=True, output={"canaries": [ECHO_CANARY]}) as server:
        yield server


def said(triton: Any) -> list[str]:
    """What the LLM has noted of its requests: words said, and the last."""
    file = triton.repository / "llm" / "said.txt"
    return file.read_text().splitlines() if file.exists() else []


def until(done: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not (found := done()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


@pytest.mark.parametrize("leaves", ["while it streams", "before the first word"])
def test_a_client_that_leaves_frees_the_llm(echo: Any, leaves: str) -> None:
    before = len(said(echo))
    stream = Stream(echo, BLS)
    wait = 5 if leaves == "while it streams" else 100
    stream.send(text_input=f"{PLAIN} hold {wait}", stream=True)
    if leaves == "while it streams":
        stream.got.get(timeout=60)
    else:
        time.sleep(2)
    stream.client.stop_stream(cancel_requests=True)
    assert until(lambda: len(said(echo)) > before)
    assert "cancelled" in said(echo)[-1]


def test_a_stop_frees_the_llm(echo: Any) -> None:
    """Of 50 words a detector lets 4 out, and the LLM does not say the rest."""
    before = len(said(echo))
    stream = Stream(echo, BLS)
    stream.send(text_input=f"{PLAIN} hold 2", stream=True)
    assert "".join(stream.parts()) == "w0 w1 w2 w3 "
    stream.client.stop_stream()
    assert until(lambda: len(said(echo)) > before)
    assert "cancelled" in said(echo)[-1]
    assert int(said(echo)[-1].split()[0]) < 30


def test_a_blocked_request_is_no_work_for_the_llm_of_the_branching_model(echo: Any) -> None:
    before = len(said(echo))
    assert echo.ask(BLS, INJECTION).status_code == 400
    assert echo.ask(BLS, PLAIN).status_code == 200
    assert len(said(echo)) == before + 1


@BOTH
def test_a_block_comes_before_the_llm_is_done(echo: Any, name: str) -> None:
    """The ensemble's LLM works beside the encoder; its answer of 25 s is not waited for."""
    started = time.monotonic()
    assert echo.ask(name, f"{INJECTION} hold 5").status_code == 400
    assert time.monotonic() - started < 20


@BOTH
def test_unloading_under_load_gives_answers_or_errors(echo: Any, name: str) -> None:
    texts = [INJECTION, PLAIN] * 40

    def ask(text: str) -> tuple[str, int]:
        return text, echo.ask(name, text).status_code

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(ask, text) for text in texts]
        echo.admin("guard_encoder/unload")
        counts = Counter(future.result() for future in running)
    assert counts[INJECTION, 200] == 0
    assert echo.ask(name, PLAIN).status_code != 200
    for step in ("guard_encoder", *COMPOSED):
        assert echo.admin(f"{step}/load").status_code == 200
    assert until(lambda: echo.ask(name, PLAIN).status_code == 200)
    assert echo.ask(name, INJECTION).status_code == 400


@pytest.mark.parametrize("killed", ["guard_encoder", "guard_extraction", "guard_input"])
@BOTH
def test_a_killed_step_is_an_error_and_never_a_pass(echo: Any, name: str, killed: str) -> None:
    texts = [INJECTION, PLAIN] * 30

    def ask(text: str) -> tuple[str, int]:
        return text, echo.ask(name, text).status_code

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(ask, text) for text in texts]
        echo.kill(killed)
        counts = Counter(future.result() for future in running)
    assert counts[INJECTION, 200] == 0
    assert echo.ask(name, INJECTION).status_code != 200
    # A name whose process died is loaded again by the operator, or by what watches its readiness.
    for step in (killed, *COMPOSED):
        echo.admin(f"{step}/unload")
    for step in (killed, *COMPOSED):
        assert until(lambda step=step: echo.admin(f"{step}/load").status_code == 200)
    assert until(lambda: echo.ask(name, PLAIN).status_code == 200)


def test_a_wrong_parameter_stops_the_load_with_its_path(echo: Any) -> None:
    config = echo.repository / "guard_encoder" / "config.pbtxt"
    right = config.read_text()
    config.write_text(
        right.replace(
            'key: "injection.block_at" value { string_value: "null"',
            'key: "injection.block_at" value { string_value: "1.5"',
        )
    )
    try:
        answer = echo.admin("guard_encoder/load")
        assert answer.status_code == 400
        assert "injection.block_at (from config.pbtxt)" in answer.text
    finally:
        config.write_text(right)
    assert until(lambda: echo.admin("guard_encoder/load").status_code == 200)


def test_batches_form_under_load(echo: Any) -> None:
    """Triton's dynamic batcher brings requests together in front of the encoder."""
    client = grpcclient.InferenceServerClient(echo.grpc_address)

    def counts() -> tuple[int, int]:
        found = client.get_inference_statistics("guard_encoder", as_json=True)["model_stats"][0]
        return int(found["inference_count"]), int(found["execution_count"])

    requests, passes = counts()
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda n: echo.ask(BLS, f"{PLAIN} {n}").status_code, range(128)))
    assert set(answers) == {200}
    more, passed = (
        after - before for after, before in zip(counts(), (requests, passes), strict=True)
    )
    assert more == 128
    assert passed < more


def test_what_was_sealed_for_one_request_serves_one(echo: Any) -> None:
    client = grpcclient.InferenceServerClient(echo.grpc_address)
    read = client.infer("guard_input", tensors(text_input=PLAIN), headers=echo.headers)
    stream = Stream(echo, "guard_llm")
    tensor = grpcclient.InferInput("prompt", [1, 1], "BYTES")
    tensor.set_data_from_numpy(read.as_numpy("prompt").reshape(1, 1))
    for _ in range(2):
        stream.client.async_stream_infer("guard_llm", [tensor])
    got = [stream.got.get(timeout=60) for _ in range(2)]
    stream.client.stop_stream()  # or the server waits for it at its end
    (refused,) = [answer for answer in got if isinstance(answer, Exception)]
    (served,) = [answer for answer in got if not isinstance(answer, Exception)]
    assert b"w0" not in served.as_numpy("answer")[0, 0]
    assert "taken already" in str(refused)  # it may come before the LLM's answer
