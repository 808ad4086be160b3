"""The GPU check on toys, on the CPU: what it counts by hand, what it builds against the dense twin, what it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.kernels.bind import bind
from models.kernels.environment import probe
from scripts.gpu_bench import Bench, measure
from scripts.gpu_caches import off_by
from scripts.gpu_check import wait
from scripts.gpu_checks import Check, checks_page
from scripts.gpu_models import SIZES, build_decoder, decode_step, filled_caches, make_batch, read_model, tensors_of
from scripts.gpu_report import Row, attention, speed_pages
from scripts.gpu_tests import Outcome, pages_of
from scripts.gpu_work import decode_bytes, prefill_operations, weight_bytes

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TOY = SIZES["toy"]


def config_of(name):
    return read_model(TOY.models[name])


def decoder_of(name):
    torch.manual_seed(0)
    return build_decoder(config_of(name), dtype=torch.float32, device=CPU)


def run(module, *options):
    command = [sys.executable, "-m", f"scripts.{module}", "--device", "cpu", "--size", "toy", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_work_of_a_transformer_by_hand():
    """2 layers, hidden 64, 4 heads and 2 of keys of 16 entries, MLP 96, vocabulary 256, in float32."""
    linear = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
    head, norms = 256 * 64, 5 * 64
    decoder = decoder_of("toy-llama")
    assert weight_bytes(decoder) == 4 * (linear + head + norms)
    needs = decoder.config.cache_needs(4)
    # Each token: keys and values, 2 layers. A step reads 40 tokens' and its own, and writes its own.
    assert decode_bytes(1000, needs, batch=3, context=40) == 1000 + 3 * (40 + 2) * (2 * 2 * 2 * 16 * 4)
    pairs = sum(range(1, 81))
    assert prefill_operations(decoder, 80, chunk=32) == 2 * linear * 80 + 2 * head * 3 + 2 * 4 * 64 * pairs


def test_work_of_a_mamba_by_hand():
    """2 layers of 8 heads of 16 channels, states of 16, a convolution of 4 over 128 + 2 * 16 channels."""
    decoder = decoder_of("toy-mamba2")
    state = 4 * 2 * ((128 + 32) * 3 + 8 * 16 * 16)
    assert decode_bytes(0, decoder.config.cache_needs(4), batch=3, context=128 << 10) == 3 * 2 * state
    linear = 2 * (64 * (128 + 160 + 8) + 128 * 64)
    assert prefill_operations(decoder, 64, chunk=64) == 2 * linear * 64 + 2 * 256 * 64 + 2 * 5 * 8 * 16 * 16 * 64


@pytest.mark.parametrize("name", TOY.models)
def test_what_is_counted_is_what_lies_in_the_caches(name):
    config = config_of(name)
    caches = filled_caches(config, 48, 3, block_size=16, dtype=torch.bfloat16, device=CPU)
    needs = config.cache_needs(2)
    allocated = sum(tensor.nbytes for tensor in tensors_of(caches))
    assert allocated == 3 * (48 * needs.bytes_per_token + needs.bytes_per_sequence)
    assert all(bool(tensor.any()) for tensor in tensors_of(caches))


@pytest.mark.parametrize("name", TOY.models)
def test_the_steps_that_are_timed_are_the_models(name):
    """Two sequences, a prompt in chunks and a step of decoding in caches full of noise: the dense twin's logits."""
    decoder, tokens = decoder_of(name), 33
    bind(decoder, probe(CPU), torch.float32, 16)
    caches = filled_caches(decoder.config, tokens, 2, block_size=16, dtype=torch.float32, device=CPU)
    ids = []
    with torch.inference_mode():
        for start, new in ((0, 20), (20, 12), (32, 1)):
            batch = make_batch(start, new, 2, tokens=tokens, block_size=16, vocab_size=256, device=CPU)
            ids.append(batch.token_ids.view(2, new))
            logits = decode_step(decoder, batch, caches)
        expected = decoder.logits(decoder.forward_dense(torch.cat(ids, 1)))[:, -1]
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_rows_are_positive_and_agree_with_each_other(tmp_path):
    done = run("gpu_speed", "--out", tmp_path, "--minutes", 5)
    assert done.returncode == 0, done.stderr
    rows = [Row(**json.loads(line)) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert [row for row in rows if row.note and row.kind != "ceiling"] == []
    copy, product, *others = rows
    assert all(row.seconds > 0 and row.spread >= 0 for row in rows)
    rates = {"copy": copy.bytes_moved / copy.seconds, "product": product.operations / product.seconds}
    cells = len(TOY.contexts) * len(TOY.batches)
    kinds = [row.kind for row in others]
    assert (kinds.count("decode"), kinds.count("prefill")) == (3 * cells, 3 * len(TOY.prompts))
    assert kinds.count("attention") == 2 * cells * 2 * 2  # of two models, in blocks of two sizes, numba and torch
    assert sum(row.is_rule for row in others) == 2 * cells
    for row in others:
        work, ceiling = (row.operations, "product") if row.kind == "prefill" else (row.bytes_moved, "copy")
        assert row.share == pytest.approx(work / row.seconds / rates[ceiling])
        assert row.share > 0
    for row in others:
        if row.kind != "attention":
            tokens = row.batch if row.kind == "decode" else row.context
            assert row.tokens_per_s == pytest.approx(tokens / row.seconds)
    assert "Attention of a decode step" in done.stdout


def test_when_the_minutes_are_over_the_rest_is_left_out(tmp_path):
    done = run("gpu_speed", "--out", tmp_path, "--minutes", 0)
    assert done.returncode == 0
    assert len((tmp_path / "speed.jsonl").read_text().splitlines()) == 1
    assert "the rest is left out" in done.stdout


def test_what_cannot_be_measured_says_why():
    bench = Bench(TOY, CPU, torch.float32, probe(CPU), copy_rate=1.0, matmul_rate=1.0)
    assert bench.refuses(1) is None
    assert "does not fit: 1000000.1 GB wanted" in bench.refuses(10**15)

    row = measure(Row("decode", "m", "eager", 1, 1024), lambda row: torch.ones(2) @ torch.ones(row.context))
    assert row.note.startswith("failed: inconsistent tensor size")
    [page] = speed_pages([row])
    assert page.rows[0][:4] == ("m", "eager", "1", "1K")
    assert page.rows[0][-1] == row.note


def test_the_rule_beside_the_fastest():
    times = {"triton": 3e-5, "torch": 1e-5}
    rows = [
        Row("attention", "m", name, 1, 1024, seconds=s, spread=0.1, seconds_with_python=s, is_rule=name == "triton")
        for name, s in times.items()
    ]
    assert [(row[3], row[4], row[-1]) for row in attention(rows).rows] == [
        ("triton", "rule", "3.00"),
        ("torch", "", "1.00"),
    ]


def test_outcomes_by_family_and_by_file():
    name = "tests/models/test_exactness.py::test_"
    outcomes = [
        Outcome(f"{name}dense_forward[cuda-a]", "passed", "a", "attention numba", 1e-6),
        Outcome(f"{name}token_by_token[cuda-a]", "failed", "a", "attention triton", 2e-3),
        Outcome(f"{name}greedy_tokens[cuda-a]", "passed", "a", "attention triton", None),
        Outcome("tests/models/test_kernels.py::test_the_rule", "passed", None, None, None),
    ]
    families, files, failed = pages_of(outcomes)
    assert families.rows == [("a", "attention triton", "2.0e-03", "token by token", "2", "token by token")]
    assert files.rows[0] == ("tests/models/test_exactness.py", "2", "1", "0")
    assert failed.rows == [(f"{name}token_by_token[cuda-a]",)]


def test_what_is_only_told_is_told_apart_from_what_failed():
    checks = [Check("m", "what", "against", "found", passed) for passed in (True, False, None)]
    assert [row[4] for row in checks_page(checks).rows] == ["passed", "FAILED", "told"]


def test_nonsense_is_no_small_deviation():
    assert off_by(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 4.0])) == 0.25
    assert off_by(torch.tensor([float("nan"), 4.0]), torch.tensor([2.0, 4.0])) == float("inf")


@pytest.mark.slow
def test_options_of_the_engine(tmp_path):
    done = run("gpu_engine", "--out", tmp_path, "--only", "arena,host")
    assert done.returncode == 0, done.stdout + done.stderr
    checks = [Check(**json.loads(line)) for line in (tmp_path / "engine.jsonl").read_text().splitlines()]
    assert all(check.passed for check in checks)
    # numba and torch, in blocks of two sizes, against two others; the host's memory
    assert len(checks) == 2 * 2 * 2 + 1


def test_a_part_whose_time_is_over_is_ended():
    code = "import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
    saved = []
    assert wait(process, 1.5, lambda: saved.append(True)) < 0
    assert process.poll() is not None
    assert saved


@pytest.mark.slow
def test_one_command_runs_tests_and_speed(tmp_path):
    done = run("gpu_check", "--out", tmp_path, "--only", "tests,decode", "--minutes", 4)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "results.json").read_text())
    assert [(part["name"], part["exit_code"]) for part in record["parts"]] == [("tests", 0), ("decode", 0)]
    measured = {one["family"]: one for one in record["tests"] if one["deviation"] is not None}
    assert measured["llama-tied"]["backends"] == "attention numba"
    assert measured["mamba2-tied"]["backends"] == "scan numba, step numba"
    assert all(one["deviation"] < 1e-4 for one in measured.values())
    assert {row["kind"] for row in record["speed"]} == {"ceiling", "decode"}
    page = (tmp_path / "measurements.md").read_text()
    assert "- command: python -m scripts.gpu_check" in page
    assert "| llama-tied | attention numba |" in page
    assert "| toy-mamba2 | eager | 3 | 300 |" in page
