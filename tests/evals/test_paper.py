"""Figures for papers: Markdown tables that read as they are meant, and pictures that are pictures."""

import struct

from evals_rows import hallucinated, sample, sweep

from evals.report.paper import COLUMNS, markdown, write_pictures
from evals.summary import summarise


def test_tables_have_every_point_and_no_markup_of_names():
    rows = [sample(model="a|b_*c*", budget=budget) for budget in (0, 256)]
    text = markdown(summarise(rows))
    assert r"### a\|b\_\*c\*, retrieved documents, told always to answer" in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert table[0] == f"| {' | '.join(COLUMNS)} |"
    assert table[2] == "| 0 | 100 | 1 | 0.0 [0-79] | 100.0 [21-100] | 0.0 [0-79] | 0.0 [0-79] | 500 | 100 | 1.5 KiB |"
    assert len(table) == 4
    assert all(f"- **{name}**" in text for name in ("correct", "abstained"))


def test_charts_are_written_as_pictures(tmp_path):
    rows = sweep(num_questions=6)
    rows += [hallucinated(model="embedded:mamba", condition="oracle", question_id=f"q{i}") for i in range(3)]
    files = write_pictures(tmp_path / "charts", summarise(rows))
    names = {file.name for file in files}
    assert {"world-conditions_chart.png", "world-hallucination.png", "world-decomposition.png"} <= names
    for file in files:
        content = file.read_bytes()
        assert content.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", content[16:24])
        assert width > 600
        assert height > 300
