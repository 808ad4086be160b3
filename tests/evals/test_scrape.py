"""Servers' own figures: by which names each gives them, whose they are, and when they were read."""

import asyncio
import itertools

import pytest
from evals_rows import sample
from fakes_endpoint import MODEL, Planted, serving

from evals.config import RunConfig
from evals.output import write_outputs
from evals.records import Scrape
from evals.runner import run_evals
from evals.scrape import read_figures
from evals.store import Store
from evals.summary import caveats, summarise, summary_table

VLLM = """# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 3.0
vllm:num_preemptions_total{engine="0",model_name="m"} 4.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7e+09
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 900.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 300.0
vllm:cache_config_info{block_size="16",num_gpu_blocks="1000",engine="0"} 1.0
vllm:cache_config_info{block_size="16",num_gpu_blocks="1000",engine="1"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="m"} 0.0
process_resident_memory_bytes 5.0e+09
"""
SGLANG = """sglang:token_usage{model_name="org/m",tp_rank="0",pp_rank="0"} 0.28
sglang:token_usage{model_name="org/m",tp_rank="1",pp_rank="0"} 0.28
sglang:num_used_tokens{model_name="org/m",tp_rank="0",pp_rank="0"} 2800
sglang:num_used_tokens{model_name="org/m",tp_rank="1",pp_rank="0"} 2800
sglang:max_total_num_tokens{model_name="org/m",tp_rank="0",pp_rank="0"} 10000
sglang:num_running_reqs{model_name="org/m",tp_rank="0",pp_rank="0"} 7
sglang:num_retracted_requests_total{model_name="org/m",tp_rank="0",pp_rank="0"} 2
sglang:cache_hit_rate{model_name="org/m",tp_rank="0",pp_rank="0"} 0.5
"""
LLAMA = """llamacpp:kv_cache_usage_ratio 0.5
llamacpp:kv_cache_tokens 2048
llamacpp:requests_processing 1
llamacpp:predicted_tokens_seconds nan
"""
FATHOM = """fathom_engine_running{model="m"} 1.0
fathom_engine_running{model="n"} 5.0
fathom_engine_blocks{model="m"} 100.0
fathom_engine_free_blocks{model="m"} 75.0
fathom_engine_blocks{model="n"} 0.0
fathom_engine_free_blocks{model="n"} 0.0
fathom_engine_state_slots{model="n"} 64.0
fathom_engine_free_state_slots{model="n"} 48.0
fathom_engine_preemptions_total{model="m"} 0.0
"""


@pytest.mark.parametrize(
    ("text", "model", "figures"),
    [
        (VLLM, "m", {"kv_share": 0.5, "running": 5, "preemptions": 4, "prefix_query_tokens": 900,
                     "prefix_hit_tokens": 300, "kv_capacity_tokens": 32_000, "kv_tokens": 16_000,
                     "process_bytes": 5e9}),
        (VLLM.replace("kv_cache_usage", "gpu_cache_usage").replace("m:prefix", "m:gpu_prefix"), "m",
         {"kv_share": 0.5, "running": 5, "preemptions": 4, "prefix_query_tokens": 900, "prefix_hit_tokens": 300,
          "kv_capacity_tokens": 32_000, "kv_tokens": 16_000, "process_bytes": 5e9}),
        ('vllm:kv_cache_usage_perc 0.1\nvllm:cache_config_info{block_size="16",num_gpu_blocks="62500",'
         'kv_cache_size_tokens="50000"} 1', "m",
         {"kv_share": 0.1, "kv_capacity_tokens": 50_000, "kv_tokens": 5_000}),
        ('vllm:kv_cache_usage_perc 0.1\nvllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1', "m",
         {"kv_share": 0.1}),
        (SGLANG, "served under another name", {"kv_share": 0.28, "kv_tokens": 2800, "kv_capacity_tokens": 10_000,
                                               "running": 7, "preemptions": 2, "prefix_hit_rate": 0.5}),
        (LLAMA, "m", {"kv_share": 0.5, "kv_tokens": 2048, "running": 1}),
        (LLAMA.replace("0.5", "nan"), "m", {"kv_tokens": 2048, "running": 1}),
        (FATHOM, "m", {"running": 1, "kv_share": 0.25, "preemptions": 0}),
        (FATHOM, "n", {"running": 5, "state_share": 0.25}),
        ("# TYPE other gauge\nother 3\n", "m", {}),
        ("<html>not found</html>", "m", {}),
    ],
)  # fmt: skip
def test_every_servers_names(text, model, figures):
    assert read_figures(text, model) == pytest.approx(figures)


def test_what_is_no_exposition_is_a_value_error():
    with pytest.raises(ValueError, match="could not convert"):
        read_figures("vllm:kv_cache_usage_perc much\n", "m")


def config_for(url, out, **options):
    defaults = {"model": MODEL, "budgets": (0, 60), "num_questions": 4, "concurrency": 1, "scrape_interval_s": 0.01}
    return RunConfig(endpoint=url, out=out, **defaults | options)


async def run(planted, out, dataset, **options):
    said = []
    async with serving(planted) as url:
        [result] = await run_evals([config_for(url, out, **options)], dataset, say=said.append)
    with Store(out) as store:
        return result, said, list(store.scrapes())


async def test_figures_are_read_while_samples_are_asked(dataset, tmp_path):
    preempted = itertools.count()

    def metrics():
        return f"vllm:kv_cache_usage_perc 0.125\nvllm:num_preemptions_total {next(preempted)}\n"

    planted = Planted(metrics=metrics, delay_s=0.05, reports_memory=False)
    result, said, scrapes = await run(planted, tmp_path, dataset)
    assert (result.failed, said) == (0, [])
    assert {(one.model, one.dataset, one.name) for one in scrapes} == {
        (MODEL, "people", "kv_share"),
        (MODEL, "people", "preemptions"),
    }
    summary, _ = write_outputs(tmp_path)
    [series] = summary["models"]
    for point in series["points"]:
        share = point["scraped"]["kv_share"]
        assert (share["mean"], share["peak"]) == (0.125, 0.125)
        assert 0 < share["n"] < len(scrapes) / 2
        assert point["scraped"]["kv_tokens"] == {"mean": None, "peak": None, "n": 0}
        assert point["cache_bytes"]["mean"] is None
    # One for each reading.
    assert 0 < series["preemptions"] < max(one.value for one in scrapes if one.name == "preemptions")
    assert "sequences gave up their cache" in caveats([series])[0]
    [table, *_] = summary_table(summary).renderables
    assert list(table.columns[-1].cells) == ["12.5 %", "12.5 %"]


@pytest.mark.parametrize(
    "planted",
    [
        Planted(),
        Planted(metrics=lambda: VLLM, metrics_status=401),
        Planted(metrics=lambda: VLLM, metrics_status=500),
        Planted(metrics=lambda: "vllm:kv_cache_usage_perc much\n"),
        Planted(metrics=lambda: "other 3\n"),
    ],
    ids=["none", "refused", "failing", "garbled", "others"],
)
async def test_a_server_that_tells_nothing_is_asked_all_the_same(dataset, tmp_path, planted):
    result, said, scrapes = await run(planted, tmp_path, dataset)
    assert (result.asked, result.failed, scrapes) == (8, 0, [])
    assert said == [
        "planted: the endpoint tells nothing at /metrics: of its memory only what usage says is known",
    ]


async def test_figures_that_fail_later_are_missing_and_nothing_else(dataset, tmp_path):
    readings = itertools.count()
    planted = Planted(metrics=lambda: VLLM if next(readings) < 3 else "vllm:kv_cache_usage_perc {{\n", delay_s=0.03)
    result, said, scrapes = await run(planted, tmp_path, dataset)
    assert (result.failed, said) == (0, [])
    assert len([one for one in scrapes if one.name == "running"]) == 2


async def test_no_interval_is_no_scraping(dataset, tmp_path):
    readings = itertools.count()
    planted = Planted(metrics=lambda: f"vllm:num_requests_running {next(readings)}\n")
    result, said, scrapes = await run(planted, tmp_path, dataset, scrape_interval_s=0)
    assert (result.failed, said, scrapes, next(readings)) == (0, [], [], 0)


async def test_a_metrics_page_that_hangs_holds_nobody_up(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("evals.scrape.TIMEOUT_S", 0.05)
    planted = Planted(metrics=lambda: VLLM)

    async def hang(_):
        await asyncio.sleep(60)

    planted._metrics = hang
    result, said, scrapes = await run(planted, tmp_path, dataset)
    assert (result.failed, len(said), scrapes) == (0, 1, [])


def scrape(at_s, value, name="kv_share"):
    return Scrape(model="m", dataset="world", at_s=at_s, name=name, value=value)


def test_a_point_has_what_was_read_in_its_own_time():
    rows = [
        sample(question_id="a", budget=256, sent_s=10.0, end_s=11.0),
        sample(question_id="b", budget=256, sent_s=20.0, end_s=21.0),
        sample(question_id="a", budget=512, sent_s=11.5, end_s=12.5),
    ]
    times = {9.9: 0.9, 10.5: 0.1, 11.2: 0.9, 12.0: 0.5, 20.0: 0.3, 21.1: 0.9}
    other = Scrape(model="n", dataset="world", at_s=10.4, name="kv_share", value=0.9)
    [series] = summarise(rows, scrapes=[*(scrape(at_s, value) for at_s, value in times.items()), other])["models"]
    first, second = (point["scraped"]["kv_share"] for point in series["points"])
    assert first == {"mean": pytest.approx(0.2), "peak": 0.3, "n": 2}
    assert second == {"mean": 0.5, "peak": 0.5, "n": 1}


def test_preemptions_are_those_of_the_run():
    rows = [
        sample(question_id="a", sent_s=10.0, end_s=11.0),
        sample(question_id="b", sent_s=50.0, end_s=51.0),
    ]
    # Before the run 5, in the pause 20 of somebody else's; the engine began anew at 50.5.
    counts = [(9.0, 0), (9.5, 5), (10.5, 7), (11.5, 8), (49.5, 28), (50.5, 2), (51.5, 3), (60.0, 9)]
    scrapes = [scrape(at_s, float(value), "preemptions") for at_s, value in counts]
    [series] = summarise(rows, scrapes=scrapes)["models"]
    assert series["preemptions"] == (7 - 5) + (8 - 7) + 2 + (3 - 2)
    [unread] = summarise(rows, scrapes=scrapes[:1])["models"]
    assert unread["preemptions"] is None
