"""Three counts of one prompt: what a server leaves out is found, what it says truly is never called a cut."""

import itertools
import random
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
import tokenizer_files
from fakes_endpoint import MODEL, Planted, serving
from serving import ServerProcess
from tokenizers import Tokenizer

from evals.config import RunConfig
from evals.contexts import Asked
from evals.datasets import load_dataset
from evals.dialect import NO_STREAM_OPTIONS
from evals.output import write_outputs
from evals.prompts import build_messages, render_document, render_question
from evals.reconcile import DOCUMENTS_PER_SLACK_TOKEN, SLACK_TOKENS, Lengths, Reconciler
from evals.records import ESTIMATED, Question
from evals.runner import run_eval
from evals.store import Store
from evals.summary import caveats
from evals.tokens import ANCHOR
from loadtest.wire import Usage

EMBEDDED = Path(__file__).resolve().parents[2] / "models" / "embedded"
MARKS = {  # of words, and of signs in runs: where a tokenizer may merge across a border
    "one by one": r"\s+|\w+|[^\s\w]",
    "in runs": r"\s+|\w+|[^\s\w]+\s*",
}


def config_for(url, out, **options):
    defaults = {"model": MODEL, "budgets": (0, 20, 100), "num_questions": 12, "scrape_interval_s": 0}
    return RunConfig(endpoint=url, out=out, **defaults | options)


def rows_of(directory):
    with Store(directory) as store:
        return list(store.rows())


async def test_a_cut_that_leaves_more_than_the_documents_is_found(dataset, tmp_path):
    """The first document is gone, the rest and the question are there: more tokens than the documents alone have."""
    async with serving(Planted(sees=125)) as url:
        result = await run_eval(config_for(url, tmp_path), dataset)
    assert (result.asked, result.failed) == (36, 12)
    for row in rows_of(tmp_path):
        assert (row.lost == "truncated") == (row.budget == 100)
        if row.lost:
            assert row.document_tokens < row.prompt_tokens == 125 < row.expected_tokens
            assert row.error == (
                f"the server cut the prompt: 100 tokens of documents were asked for, the prompt has "
                f"{row.expected_tokens} tokens by the client's count, and usage.prompt_tokens counts 125 tokens in it"
            )
            assert not row.gold_in_context
        else:
            assert row.expected_tokens == row.prompt_tokens


async def test_counting_prompts_costs_one_call_for_each_question(dataset, tmp_path):
    async with serving(planted := Planted(tokenize_refusals=[200] * 1000)) as url:
        both = {"permissions": ("must_answer", "may_abstain"), "concurrency": 1}
        await run_eval(config_for(url, tmp_path, **both), dataset)
    num_calls = 1000 - len(planted.tokenize_refusals)
    # The anchor, every document once, every question once; of two instructions the text and the chat.
    assert num_calls <= 1 + len(dataset.documents) + 12 + 2 * 2
    assert all(row.expected_tokens == row.prompt_tokens for row in rows_of(tmp_path))


@pytest.mark.parametrize(("sees", "fewest"), [(12, 0), (90, 300)])
async def test_without_counts_too_much_text_for_the_tokens_is_found(dataset, tmp_path, sees, fewest):
    """At 12 tokens even the instruction is too long for them; at 90 what the longest has beyond the shorter ones."""
    config = {"budgets": (0, 40, 300), "concurrency": 1}
    async with serving(Planted(sees=sees, tokenizes=False)) as url:
        result = await run_eval(config_for(url, tmp_path, **config), dataset)
    assert result.counting == ESTIMATED
    for row in rows_of(tmp_path):
        assert row.expected_tokens is None
        assert (row.lost == "truncated") == (row.budget >= fewest)
        if row.lost and row.budget:
            assert f"{row.budget} tokens of documents were asked for" in row.error
            assert f"usage.prompt_tokens counts {sees} tokens in it" in row.error
    async with serving(Planted(tokenizes=False)) as url:
        whole = await run_eval(config_for(url, tmp_path / "whole", **config), dataset)
    assert whole.failed == 0


def test_a_plateau_is_a_cut():
    """As many tokens as a shorter prompt had: the whole prompt alone, at four characters to a token, looked right."""
    asked = Asked(Question("q", "Who?", ("Ann",), (), "open", "c"), 0, "must_answer", "natural", (512, 1024, 2048))
    reconciler = Reconciler(counter=None, unit="tokens")

    def cut(num_characters, tokens, question=asked):
        return reconciler.cut(question, Lengths("much", None, 9, num_characters), Usage(tokens, 1))

    assert cut(2_000, 500) is None
    assert cut(4_000, 1_000) is None
    assert cut(4_400, 1_000) is None, "so few characters may be one odd word"
    assert "beyond the 1,000 of a prompt of 4,400 characters" in cut(8_000, 1_000)
    assert cut(8_000, 900) is not None
    assert cut(8_000, 1_500) is None
    other = Asked(Question("p", "Who?", ("Ann",), (), "open", "c"), 1, "must_answer", "natural", (2048,))
    assert cut(8_000, 1_000, other) is None, "of another question nothing shorter is known"
    assert reconciler.cut(asked, Lengths("much", None, 9, 8_000), None) is None


async def test_a_server_that_counts_nothing_is_told(dataset, tmp_path):
    refuses = {"stream_options": (400, "unknown: stream_options")}
    async with serving(Planted(sees=12, unknown_fields=refuses)) as url:
        result = await run_eval(config_for(url, tmp_path), dataset)
    assert result.failed == 0
    summary, _ = write_outputs(tmp_path)
    assert summary["models"][0]["points"][0]["tokens"]["without_usage"] == 12
    assert caveats(summary["models"]) == [
        f"planted: {NO_STREAM_OPTIONS}.",
        "planted: the server counts no prompt tokens: nobody can tell whether it cut prompts.",
    ]


async def test_a_prompt_of_the_servers_own_is_told_and_fails_nothing(dataset, tmp_path):
    async with serving(Planted(hidden=500)) as url:
        result = await run_eval(config_for(url, tmp_path), dataset)
    assert result.failed == 0
    summary, _ = write_outputs(tmp_path)
    for point in summary["models"][0]["points"]:
        tokens = point["tokens"]
        assert tokens["requested"] == point["budget"]
        assert tokens["served_mean"] == tokens["client_counted_mean"] + 500
        assert (tokens["difference_mean"], tokens["max_difference"]) == (500, 500)
    assert "the server counts some 500 tokens more in each prompt" in caveats(summary["models"])[0]


def embedded(name):
    tokenizer = Tokenizer.from_file(str(EMBEDDED / name / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def pieces(kind):
    model = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_files.train_pieces(kind))
    return lambda text: len(model.encode(text))


def ranks(marks):
    encoding = tiktoken.Encoding(
        "trained", pat_str=marks, mergeable_ranks=tokenizer_files.train_ranks(), special_tokens={}
    )
    return lambda text: len(encoding.encode(text))


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(lambda: embedded("transformer"), id="embedded transformer"),
        pytest.param(lambda: embedded("mamba"), id="embedded mamba"),
        pytest.param(lambda: pieces("bpe"), id="pieces by BPE"),
        pytest.param(lambda: pieces("unigram"), id="pieces by unigram"),
        *(pytest.param(lambda marks=marks: ranks(marks), id=f"ranks, {name}") for name, marks in MARKS.items()),
    ],
)
def test_parts_and_whole_agree_closer_than_the_shortest_document(count):
    """So that what is let pass is a border, and what is found is a document."""
    count_text, rng = count(), random.Random(3)
    dataset = load_dataset("world", path=None, seed=0)
    anchor, frame = count_text(ANCHOR), count_text(build_messages("must_answer", (), "")[0]["content"] + "\n")
    for question, size in itertools.product(rng.sample(dataset.questions, 4), (1, 8, 40)):
        documents = rng.sample(dataset.documents, size)
        parts = [count_text(ANCHOR + render_document(document)) - anchor for document in documents]
        asked = count_text(ANCHOR + render_question(question.text)) - anchor
        whole = count_text("\n".join(one["content"] for one in build_messages("must_answer", documents, question.text)))
        missing = frame + sum(parts) + asked - whole
        slack = SLACK_TOKENS + size // DOCUMENTS_PER_SLACK_TOKEN
        assert abs(missing) <= slack
        assert missing + min(parts) > slack


@pytest.mark.slow
async def test_our_own_server_is_never_said_to_cut(tmp_path):
    dataset = load_dataset("world", path=None, seed=0)
    with ServerProcess("embedded:transformer", "embedded:mamba") as server:
        server.wait_ready()
        for model in ("embedded:transformer", "embedded:mamba"):
            options = {"budgets": (0, 256, 1024, 4096), "num_questions": 3, "scrape_interval_s": 0.05}
            result = await run_eval(config_for(server.url, tmp_path, model=model, **options), dataset)
            assert (result.asked, result.failed) == (12, 0)
    summary, _ = write_outputs(tmp_path)
    assert caveats(summary["models"]) == []
    for series in summary["models"]:
        assert {point["tokens"]["max_difference"] for point in series["points"]} == {0}
        scraped = series["points"][-1]["scraped"]
        assert scraped["running"]["peak"] >= 1
        assert scraped["state_share" if series["kind"] == "mamba" else "kv_share"]["peak"] > 0
        assert series["preemptions"] == 0
