"""The bench: what is raced is what is said; who is absent or fails is said; a whole small race against a real rival."""

import itertools
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from loadtest.bench import shapes
from loadtest.bench.checkpoint import copy_embedded, draw, round_to_bfloat16, write_checkpoint
from loadtest.bench.child import Child
from loadtest.bench.exchange import Answer, ContenderError, CutError, Question
from loadtest.bench.http import Dialect, Server, same_beginning
from loadtest.bench.race import Meeting, Rules, family, quick_models
from loadtest.bench.results import Agreement, Cut, Key, Results, Sample, summary_rows
from loadtest.bench.rivals import OURS, Places, Race, Rival, find
from loadtest.bench.vocabulary import Words
from loadtest.bench.workloads import workloads
from loadtest.latency import StreamTimes

KEY = Key("llama", "float32", "short")
TINY = shapes.llama(layers=1, width=16, heads=2, inner=16, vocab=1000)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("bench") / "llama", TINY)


def test_a_prompt_is_the_same_as_ids_and_as_text(tiny):
    words = Words.read(tiny)
    ids = words.draw(random.Random(0), 500)
    assert words.cut(words.text(ids)) == list(ids)
    assert len(set(ids)) > 300
    assert len(words.ids) > 600


def test_embedded_prompts_have_a_text_too_and_answers_no_end(tmp_path):
    directory = copy_embedded(tmp_path / "mamba", "mamba")
    words = Words.read(directory)
    ids = words.draw(random.Random(0), 100)
    assert words.cut(words.text(ids)) == list(ids)
    assert "eos_token_id" not in json.loads((directory / "generation_config.json").read_text(encoding="utf-8"))


def test_weights_are_what_bfloat16_holds_and_score_only_words(tiny):
    tensors = load_file(tiny / "model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {name: size for name, size, _ in TINY.tensors()}
    assert all((tensor.view(np.uint32) & 0xFFFF == 0).all() for tensor in tensors.values())
    scored = np.flatnonzero(np.abs(tensors["lm_head.weight"]).sum(axis=1))
    assert scored.tolist() == Words.read(tiny).ids


def test_rounding_is_to_the_nearest_and_halves_to_even():
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-9], dtype=np.float32)
    assert round_to_bfloat16(values).tolist() == [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -1.0]


def test_steps_of_a_mamba_are_in_their_range():
    steps = np.logaddexp(0, draw("dt_bias", (1000,), "step"))
    assert (steps > 0.9e-3).all()
    assert (steps < 1.1e-1).all()


@pytest.mark.parametrize("name", ["llama", "mamba2", "mamba"])
def test_full_shapes_are_of_about_100m_parameters(name):
    shape = {"llama": shapes.llama, "mamba2": shapes.mamba2, "mamba": shapes.mamba}[name]()
    assert 125e6 < sum(np.prod(size) for _, size, _ in shape.tensors()) < 140e6


def test_every_run_has_prompts_of_its_own(tiny):
    words, mixed = Words.read(tiny), workloads(quick=False)["mixed"]
    first, again, second = (mixed.questions(words, seed) for seed in ("run 0", "run 0", "run 1"))
    lengths = sorted(len(question.tokens) for question in first)
    assert first == again
    assert lengths == sorted(len(question.tokens) for question in second)
    assert (lengths[0], lengths[-1], len(lengths)) == (128, 2048, 16)
    assert not {question.tokens[:8] for question in first} & {question.tokens[:8] for question in second}


def test_shared_and_nested_prompts_begin_alike(tiny):
    words, every = Words.read(tiny), workloads(quick=True)
    shared = [question.tokens for question in every["shared"].questions(words, "")]
    assert {tokens[:512] for tokens in shared} == {shared[0][:512]}
    assert len({tokens[512:] for tokens in shared}) == 32
    nested = [question.tokens for question in every["sweep"].questions(words, "")]
    assert [len(tokens) - 32 for tokens in nested] == [4, 8, 16, 32, 64, 128, 256, 512]
    assert all(longer[: len(shorter) - 32] == shorter[:-32] for shorter, longer in itertools.pairwise(nested))


def answered(*, first_s: float, last_s: float, num_tokens: int) -> Answer:
    return Answer(StreamTimes(None, 0.0, (first_s, last_s), last_s), num_tokens, ())


def test_figures_by_hand():
    every = workloads(quick=False)
    [prefill, decode] = every["single"].figures
    one = [answered(first_s=2.0, last_s=5.1, num_tokens=32)]
    assert prefill.read(one) == pytest.approx(1024.0)
    assert decode.read(one) == pytest.approx(10.0)
    [output] = every["batch8"].figures
    assert output.read([*one, answered(first_s=1.0, last_s=8.0, num_tokens=32)]) == pytest.approx(8.0)
    [seconds] = every["sweep"].figures
    assert seconds.read(one) == pytest.approx(5.1)


def test_ratios_are_of_the_same_run_and_what_was_cut_is_a_bound():
    results = Results()
    for run, (ours, theirs) in enumerate([(10.0, 5.0), (30.0, 10.0), (8.0, 8.0)]):
        for name, value in ((OURS, ours), ("other", theirs)):
            results.add(Sample(KEY, name, run, 1.0, {"decode": value}, None))
    results.add(Cut(KEY, "slow", 0, 40.0, 4.0))
    results.add(Agreement("llama", "float32", "other", 47, 48))
    mine, other, slow = summary_rows(results, list(workloads(quick=False).values()), [OURS, "other", "slow"])
    assert (mine["median"], "ratio" in mine) == (10.0, False)
    assert (other["ratio"], other["ratio_low"], other["ratio_high"]) == (2.0, 1.0, 3.0)
    assert other["computes_something_else"] is True
    assert slow["at_least"] == 10.0


def test_absent_rivals_are_said_to_be_absent(tmp_path):
    places = Places(str(tmp_path / "llama-server"), str(tmp_path / "vllm"), str(tmp_path / "python"))
    present, absent = find(places)
    assert [rival.name for rival in present] == [OURS]
    assert set(absent) == {"llama.cpp", "vllm", "generate", "transformers serve"}
    assert "--vllm" in absent["vllm"]
    assert str(tmp_path) in absent["generate"]


def server_that(tmp_path: Path, tiny: Path, code: str) -> Server:
    return Server(
        lambda port: [sys.executable, "-c", code, str(port)],
        Dialect("m"),
        Words.read(tiny),
        log=tmp_path / "log",
        env={},
        start_s=20.0,
    )


def test_a_server_that_does_not_start_is_quoted(tmp_path, tiny):
    server = server_that(tmp_path, tiny, "raise ValueError('no such shape')")
    with pytest.raises(ContenderError, match="does not start: ValueError: no such shape"):
        server.start()
    assert server.child is not None
    server.child.end()


HANGS = """
import http.server, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        time.sleep(60)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_that_takes_too_long_is_stopped(tmp_path, tiny):
    server = server_that(tmp_path, tiny, HANGS)
    server.start()
    assert server.child is not None
    with pytest.raises(CutError):
        server.ask([Question((1,), None, 2)], concurrency=1, limit_s=0.5)
    server.child.end()
    assert not server.child.running


# Answers at once; sleeps or dies, as it is told, where 24 tokens are asked for.
MISBEHAVES = """
import http.server, json, os, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["max_tokens"] == 24:
            if sys.argv[1] == "sleep": time.sleep(60)
            if sys.argv[1] == "die": print("RuntimeError: no room", flush=True); os._exit(1)
        self.send_response(200); self.end_headers()
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        for number in range(body["max_tokens"]):
            last = {"finish_reason": "length"} if number == body["max_tokens"] - 1 else {}
            chunk = {"choices": [{"text": " ba", **last}], "usage": usage}
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\\n\\n")
            time.sleep(0.001)
        self.wfile.write(b"data: [DONE]\\n\\n")
http.server.ThreadingHTTPServer.request_queue_size = 64
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


def test_who_is_stopped_or_dies_is_back_for_the_next_workload(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("loadtest.bench.race.LEAST_LIMIT_S", 3.0)
    words, results, lines = Words.read(tiny), Results(), list[str]()

    def rival(name: str, deed: str) -> Rival:
        return Rival(
            name,
            "",
            lambda race: race.server(
                name, lambda port: [sys.executable, "-c", MISBEHAVES, deed, str(port)], Dialect("m")
            ),
        )

    rivals = [rival(OURS, ""), rival("slow", "sleep"), rival("mortal", "die")]
    race = Race(
        checkpoint=tiny, family="llama", dtype="float32", words=words, contexts=(300, 300), streams=8, threads=1,
        cache_gib=1, start_s=20.0, directory=tmp_path,
    )  # fmt: skip
    every = workloads(quick=False)
    with Meeting("llama", race, rivals, results, lines.append) as meeting:
        meeting.check(long=False)
        for name in ("batch8", "short"):
            meeting.run(every[name], Rules(runs=2, patience=1.0))
    assert [(entry.contender, entry.same) for entry in results.agreements] == [("slow", 48), ("mortal", 48)]
    assert [(cut.contender, cut.key.workload, cut.run) for cut in results.cuts] == [("slow", "batch8", 0)]
    [trouble] = results.troubles
    assert (trouble.contender, trouble.workload) == ("mortal", "batch8")
    assert "RuntimeError: no room" in trouble.message
    ran = [(sample.key.workload, sample.run, sample.contender) for sample in results.samples]
    assert ran[:2] == [("batch8", 0, OURS), ("batch8", 1, OURS)]
    assert ran[2:] == [("short", run, name) for run in (0, 1) for name in (OURS, "slow", "mortal")]


def test_a_paused_child_stands_still(tmp_path):
    ticks = tmp_path / "ticks"
    code = f"import time\nwhile True:\n open({str(ticks)!r}, 'a').write('.')\n time.sleep(0.01)"
    child = Child([sys.executable, "-c", code], env={}, log=tmp_path / "log")
    try:
        while not ticks.exists():
            time.sleep(0.02)
        child.pause()
        time.sleep(0.1)
        before = ticks.stat().st_size
        time.sleep(0.2)
        assert ticks.stat().st_size == before
        child.resume()
        deadline_s = time.monotonic() + 20
        while ticks.stat().st_size == before and time.monotonic() < deadline_s:
            time.sleep(0.02)
        assert ticks.stat().st_size > before
    finally:
        child.end()


def test_names():
    assert {name: family(name) for name in quick_models()} == {
        "llama": "llama", "mamba2": "mamba2", "mamba": "mamba",
        "embedded-transformer": "llama", "embedded-mamba": "mamba2",
    }  # fmt: skip
    assert same_beginning((1, 2, 3), (1, 2, 4)) == 2


@pytest.mark.slow
def test_a_small_race_against_generate(tmp_path):
    """The whole way: weights, both contenders, the greedy check, alternate runs, the table, one line of JSON."""
    options = ["--quick", "--models", "llama", "--dtypes", "float32", "--only", "short", "--runs", "2"]
    options += ["--rivals", "generate,vllm", "--vllm", str(tmp_path / "nothing"), "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "fathom", "bench", *options, "--threads", "1", "--cache-gib", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert [(entry["contender"], entry["same"], entry["of"]) for entry in summary["agreements"]] == [
        ("generate", 48, 48)
    ]
    assert summary["troubles"] == []
    assert set(summary["absent"]) == {"vllm"}
    rows = {row["contender"]: row for row in summary["results"]}
    assert len(rows[OURS]["values"]) == len(rows["generate"]["values"]) == 2
    assert rows["generate"]["ratio_low"] <= rows["generate"]["ratio"] <= rows["generate"]["ratio_high"]
    lines = (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [event["contender"] for event in map(json.loads, lines) if event["event"] == "sample"]
    assert samples == [OURS, "generate"] * 2
