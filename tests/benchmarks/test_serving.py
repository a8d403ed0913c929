"""From prompts over the client's report to measures and pictures."""

import contextlib
import fcntl
import itertools
import json
import os
import sys
import threading
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from benchmarks.client import OUTPUT_TOKENS, Load, Sent, read, send
from benchmarks.growth import growth
from benchmarks.load import Refused
from benchmarks.plots import draw_all, select, users
from benchmarks.prompts import ATTACKS, Prompt, prompts, spread
from benchmarks.results import Measure, Result
from benchmarks.servers import free_port, running
from benchmarks.serving import Turns, run
from benchmarks.serving_measures import Cell, Shot, false_alarms, fits, measures
from benchmarks.stages import Stages, between, samples
from benchmarks.vs_proxy import Arm
from canned import CannedServer
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from vauban.standin import load_tokenizer, make_standin
from vauban.telemetry import Decision, Metrics


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_standin(tmp_path_factory.mktemp("standin"))


@given(st.integers(1, 200), st.floats(0, 1))
def test_attacks_are_as_many_as_asked_and_evenly_spread(count, share):
    chosen = list(spread(count, share))
    assert sum(chosen) == round(count * share)
    places = [n for n, attack in enumerate(chosen) if attack]
    gaps = {b - a for a, b in itertools.pairwise(places)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("tokens", [64, 512, 2048])
def test_prompts_have_the_length_asked_for_and_all_differ(model, tokens):
    tokenizer = load_tokenizer(model)
    rows = prompts(tokenizer, tokens, 6, 0.5) + prompts(tokenizer, tokens, 6, 0.5)
    assert len({row.text for row in rows}) == 12
    for row in rows:
        chat = [{"role": "user", "content": row.text}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert 0.8 * tokens <= len(ids) <= 1.1 * tokens
        assert row.attack == any(attack in row.text for attack in ATTACKS)


def report(errors=("", "Bad Request", ""), **changed):
    answered = [not error for error in errors]
    return {
        "ttfts": [0.1 * ok for ok in answered], "itls": [[0.0, 0.02, 0.04] * ok for ok in answered],
        "latencies": [0.5 * ok for ok in answered], "errors": list(errors), "duration": 1.5,
        **changed,
    }  # fmt: skip


def test_a_report_is_read_without_what_was_blocked():
    sent = read(report(), [False, True, False])
    assert sent == Sent((100, 100), (20, 40, 20, 40), (500, 500), 2.0, (1, 1), (2, 0))
    assert read(report(), [True, False, False]).harmless == (2, 1)


def test_a_report_that_says_something_else_is_refused():
    with pytest.raises(Refused, match="2 requests failed: Forbidden"):
        read(report(["", "Forbidden", "Internal Server Error"]), [False] * 3)
    with pytest.raises(ValueError, match="not about 2 requests"):
        read(report(), [False] * 2)
    incomplete = report()
    del incomplete["errors"]  # what `--save-detailed` adds
    with pytest.raises(ValueError, match="errors"):
        read(incomplete, [False] * 3)


def test_a_load_is_closed_or_open():
    assert Load(clients=3).flags() == ["--max-concurrency", "3"]
    assert Load(rate=2.5).flags() == ["--request-rate", "2.5", "--burstiness", "1"]
    for wrong in ({}, {"clients": 1, "rate": 1.0}):
        with pytest.raises(ValueError, match="either"):
            Load(**wrong)


@pytest.mark.parametrize("load", [Load(clients=2), Load(rate=200)])
def test_vllms_own_client_sends_what_is_asked_in_order(model, tmp_path, load):
    rows = [Prompt("one", False), Prompt(ATTACKS[0], True), Prompt("three", False)]
    server = CannedServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        sent = send(f"http://127.0.0.1:{server.server_port}", model, tmp_path, rows, load)
    finally:
        server.shutdown()
        server.server_close()
    assert (sent.attacks, sent.harmless) == ((1, 1), (2, 0))
    assert len(sent.first_ms) == len(sent.whole_ms) == 2
    assert len(sent.gap_ms) == 2 * (OUTPUT_TOKENS - 1)
    texts = {body["messages"][0]["content"][0]["text"] for body in server.bodies}
    assert texts == {row.text for row in rows}
    assert all(body["stream"] and body["ignore_eos"] for body in server.bodies)


def test_arms_are_measured_in_turns(model, tmp_path):
    """The whole runner on two programs in the servers' place."""
    program = str(Path(__file__).with_name("canned.py"))
    grid = (Cell(64, Load(clients=2), 4, 0.5), Cell(64, Load(clients=1), 2))
    (tmp_path / "model").symlink_to(model)
    with contextlib.ExitStack() as stack:
        found = {}
        for name in ("off", "on"):
            port = free_port()
            command = [sys.executable, program, str(port)]
            up = stack.enter_context(running(command, os.environ, port, tmp_path / name))
            found[name] = Arm(up.url, (up,))
        first, second = (
            {key: list(shots) for key, shots in taken.items()}
            for taken in run(found, grid, 2, tmp_path, Turns(None))
        )
    assert {len(shots) for shots in first.values()} == {1}
    assert {len(shots) for shots in second.values()} == {2}
    shot = second["on", grid[0]][1]
    assert (shot.sent.attacks[0], shot.sent.harmless) == (2, (2, 0))
    assert shot.stages.mean_ms == pytest.approx({"encoder pass": 50})
    assert shot.stages.batches == {1: 0.0, 2: 1.0, 4: 0.0}
    assert shot.cpu_ms > 0


def test_the_lock_is_given_up_when_the_next_repeat_would_be_too_much(tmp_path):
    path = tmp_path / "lock"
    turns = Turns(path)
    turns.take()
    turns.next_repeat()
    had = threading.Event()

    def other():
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            had.set()

    waiting = threading.Thread(target=other)
    waiting.start()
    assert not had.wait(0.3)
    turns._since -= turns.LONGEST_S
    turns.next_repeat()
    assert had.is_set()
    waiting.join()


def decision(batch, front_ms=2.0, encode_ms=30.0):
    return Decision(
        "r", "p", "chat", "allow", "allow", "clean", "d", score=0.1, batch=batch,
        front_ms=front_ms, queue_ms=1.0, encode_ms=encode_ms,
    )  # fmt: skip


def test_stages_are_what_was_added_between_two_scrapes():
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.observe(decision(1, front_ms=50.0))
    before = samples(generate_latest(registry).decode())
    for batch in (1, 3, 3, 4):
        metrics.observe(decision(batch))
    stages = between(before, samples(generate_latest(registry).decode()))
    assert stages.mean_ms == pytest.approx({"front": 2, "encoder queue": 1, "encoder pass": 30})
    assert stages.batches[1] == 0.25
    assert stages.batches[4] == 0.75
    assert sum(stages.batches.values()) == 1
    assert between(before, before) == Stages({}, {})


@given(st.floats(0.1, 3), st.floats(0.01, 100))
def test_growth_finds_a_power_law(exponent, scale):
    found = growth({size: [scale * size**exponent] for size in (1, 10, 100, 1000)})
    assert found.exponent == pytest.approx(exponent)
    assert found.low <= found.exponent <= found.high
    assert found.explained == pytest.approx(1)


def test_growth_says_how_sure_it_is():
    flat = growth({1: [1.0, 1.2, 0.9], 10: [1.1, 0.9, 1.0], 100: [1.0, 1.1, 0.95]})
    assert flat.low < 0 < flat.high
    for wrong in ({1: [1.0, 2.0, 3.0]}, {1: [1.0], 2: [2.0]}, {1: [0.0], 2: [1.0], 3: [1.0]}):
        with pytest.raises(ValueError, match=r"growth needs|above 0"):
            growth(wrong)


def taken():
    """Two repeats of what a server with a cost of 1 ms per token would give."""
    cells = [Cell(tokens, Load(clients=1), 2) for tokens in (64, 128, 512)]
    cells += [Cell(128, Load(clients=8), 2), Cell(128, Load(clients=8), 2, 0.5)]
    cells += [Cell(128, Load(rate=4), 2)]
    found = {}
    for cell in cells:
        for arm, cost in (("off", 0.0), ("on", 1.0), ("proxy", 2.0)):
            first = 10.0 + cost * cell.tokens
            attacks = (1, 1 if cost else 0) if cell.attacks else (0, 0)
            sent = Sent((first,), (1.0,), (first + 5,), 1e3 / first, attacks, (2, 0))
            stages = Stages({"encoder pass": cost * cell.tokens} if arm == "on" else {}, {})
            if arm == "on":
                stages = Stages(stages.mean_ms, {1: 0.25, 2: 0.75, 4: 0.0})
            found[arm, cell] = [Shot(sent, stages, 5.0 + cost * cell.tokens)] * 2
    return found


def test_measures_of_each_arm_and_how_they_grow():
    found = {measure.name: measure for measure in measures(taken())}
    assert found["first token added p50 (on, 512 tokens, 1 client)"].repeats == (512, 512)
    assert found["first token added p50 (proxy, 64 tokens, 1 client)"].value == 128
    assert found["attacks blocked (on, 128 tokens, 8 clients, 50% attacks)"].value == 100
    assert found["harmless blocked (proxy, 128 tokens, 8 clients, 50% attacks)"].value == 0
    assert found["encoder pass mean (on, 64 tokens, 1 client)"].value == 64
    assert not any(name.startswith("attacks blocked (off") for name in found)
    exponent = "exponent of growth: first token added, by prompt tokens (1 client)"
    assert found[exponent].value == pytest.approx(1)
    assert found["CPU time added a request (proxy, 512 tokens, 1 client)"].value == 1024
    flat = "exponent of growth: CPU time added a request, by clients (128 tokens)"
    assert flat not in found  # two sizes are too few
    lines = fits(list(found.values()))
    assert lines[0].startswith("first token added, by prompt tokens (1 client): size^1.00")
    assert lines[-1].startswith("CPU time added a request, by clients (128 tokens): size^0.00")
    assert false_alarms(taken()).startswith("0 of ")


def test_a_cost_that_noise_took_below_zero_is_fitted_by_its_medians():
    def noisy(values, cell):
        tags = {"metric": "CPU time added a request", "arm": "on", **cell.tags}
        return Measure(f"CPU time, {cell}", "ms", values, tags=tags)

    cells = [Cell(tokens, Load(clients=1), 1) for tokens in (64, 256, 1024)]
    found = [noisy((-5.0, float(cell.tokens), 1e6), cell) for cell in cells]
    cpu = next(line for line in fits(found) if line.startswith("CPU time added a request, by pr"))
    assert "size^1.00 (1.00 to 1.00), fitted to the medians of 3 sizes" in cpu
    below = [noisy((-5.0, -1.0, 1e6), cell) for cell in cells]
    assert "not fitted, sizes and costs must be above 0" in fits(below)[2]
    assert "not fitted, growth needs" in fits(below)[0]  # nothing of it was measured


def test_pictures_are_drawn_from_a_result(tmp_path):
    settings = {"arms": ["off", "on", "proxy"], "repeats": 2}
    path = Result("serving", settings, measures=measures(taken())).write(tmp_path)
    record = json.loads(path.read_text())
    points = select(record, "tokens", metric="first token added p50", arm="on", clients=1)
    assert [(point.x, point.value) for point in points] == [(64, 64), (128, 128), (512, 512)]
    pictures_are(draw_all(path), 6)


def test_the_extraction_detectors_cost_is_drawn_by_users(tmp_path):
    sizes = {10: (70.0, 80.0), 1_000: (75.0, 90.0), 100_000: (95.0, 99.0)}
    found = [Measure(f"a request, {n:,} users", "µs", us, at_most=60.0) for n, us in sizes.items()]
    found += [Measure(f"a user, {n:,} users", "bytes", (42_000.0,)) for n in sizes]
    found.append(Measure("100,000 users in 256 MiB: a request of a stranger", "µs", (53.0,)))
    path = Result("extraction_cost", measures=found).write(tmp_path)
    left, right = users(json.loads(path.read_text())).axes
    assert list(left.lines[0].get_xydata()[:, 0]) == list(sizes)
    assert list(left.lines[0].get_xydata()[:, 1]) == [75.0, 82.5, 97.0]
    assert set(right.lines[0].get_xydata()[:, 1]) == {42.0}
    pictures_are(draw_all(path), 2)


def pictures_are(written, count):
    assert len(written) == count
    for target in written:
        if target.suffix == ".png":
            assert target.read_bytes().startswith(b"\x89PNG")
        else:
            assert ET.parse(target).getroot().tag.endswith("svg")  # noqa: S314 - our own file
