"""The report in a real browser: its samples are found, filtered and shown beside one another, in three widths."""

import asyncio

import pytest
from browser import browsing, find_browser
from evals_rows import hallucinated, sample, sweep

from evals.records import Document
from evals.report.build import write_report
from evals.summary import summarise

HOSTILE = '<img src=x onerror="window.harmed = true"><script>window.harmed = true</script>'
A4_WIDTH = 794
BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser on this machine")


def write(tmp_path, rows, texts=None):
    return write_report(tmp_path, rows, summarise(rows), {"world": texts or {}})


async def choose(tab, title, value):
    """Take a value in the filter of that title."""
    await tab.run(
        f"""(() => {{
            const labels = [...document.querySelectorAll(".filters label")];
            const label = labels.find((one) => one.firstChild.data === {title!r});
            const field = label.querySelector("select, input");
            field.value = {value!r};
            field.dispatchEvent(new Event("change"));
        }})()"""
    )


async def texts_of(tab, selector):
    return await tab.run(f"[...document.querySelectorAll({selector!r})].map((one) => one.textContent)")


async def test_samples_are_filtered_and_shown_side_by_side(tmp_path):
    async with browsing(BROWSER) as tab:
        await tab.open(write(tmp_path, sweep()))
        # Where the headline ends.
        assert await tab.run("document.querySelectorAll('#browser .question').length") == 10
        assert await texts_of(tab, "#browser .question:nth-of-type(1) .sample b") == [
            "embedded:mamba",
            "embedded:transformer",
        ]
        [pages] = await texts_of(tab, "#browser .pages")
        assert "40 questions, page 1 of 4" in pages
        await choose(tab, "verdict", "correct")
        await choose(tab, "of model", "embedded:transformer")
        point = next(
            point
            for one in summarise(sweep())["models"]
            if (one["model"], one["permission"]) == ("embedded:transformer", "must_answer")
            for point in one["points"]
            if point["budget"] == 4096
        )
        [pages] = await texts_of(tab, "#browser .pages")
        assert f"{point['correct']['rate'] * 40:.0f} questions" in pages
        await choose(tab, "search", "no such words anywhere")
        assert await tab.run("document.querySelectorAll('#browser .question').length") == 0
        assert tab.errors == []


async def test_a_dot_and_a_figure_lead_to_their_samples(tmp_path):
    async with browsing(BROWSER) as tab:
        await tab.open(write(tmp_path, sweep()))
        for link, budget in (("svg.hallucination a[href='#p0-1']", "256"), ("td a[data-point='p1-2']", "1024")):
            await tab.run(
                f"document.querySelector({link!r}).dispatchEvent("
                "new MouseEvent('click', {bubbles: true, cancelable: true}))"
            )
            chosen = await tab.run("[...document.querySelectorAll('.filters select')].map((field) => field.value)")
            assert budget in chosen
            assert "embedded:mamba" in chosen


async def test_the_context_is_shown_with_what_was_read_in_it(tmp_path):
    texts = {
        "gold": Document("gold", "Ana", "Ana was born in 1985."),
        "other": Document("other", HOSTILE, f"Ben was born in 1976. {HOSTILE}"),
    }
    rows = [
        hallucinated(budget=256, answer="1976.", doc_ids=("other", "gold"), gold_ids=("gold",)),
        sample(budget=256, model="n", answer=HOSTILE, doc_ids=("gold",), gold_ids=("gold",), question=HOSTILE),
    ]
    async with browsing(BROWSER) as tab:
        await tab.open(write(tmp_path, rows, texts))
        await tab.run("document.querySelectorAll('#browser details').forEach((one) => { one.open = true; })")
        await asyncio.sleep(0.2)
        assert await texts_of(tab, "#browser summary") == ["2 documents, evidence at 2", "1 documents, evidence at 1"]
        assert await texts_of(tab, "#browser li.evidence") == ["Ana Ana was born in 1985."] * 2
        assert await texts_of(tab, "#browser mark.claimed") == ["1976"]
        assert await texts_of(tab, "#browser li mark.accepted") == ["1985", "1985"]
        assert await tab.run("window.harmed === undefined")
        assert await tab.run("document.querySelectorAll('#browser img, #browser script').length") == 0


@pytest.mark.parametrize("width", [400, 820, 1400])
async def test_the_page_fits_its_window_in_light_dark_and_print(tmp_path, width):
    async with browsing(BROWSER) as tab:
        await tab.open(write(tmp_path, sweep(num_questions=8)))
        for options in ({}, {"dark": True}):
            await tab.resize(width, 900, **options)
            assert await tab.run("document.documentElement.scrollWidth") <= width
        # A sheet of paper is as wide as it is.
        await tab.resize(A4_WIDTH, 1123, print_it=True)
        assert await tab.run("document.documentElement.scrollWidth") <= A4_WIDTH
        background = "getComputedStyle(document.body).backgroundColor"
        assert await tab.run(background) == "rgb(255, 255, 255)"  # of paper
        assert await tab.run("getComputedStyle(document.querySelector('.samples')).display") == "none"
        assert tab.errors == []
