"""Put a finished demo's own table and picture into the README.

    make demo && python -m scripts.readme_figures runs/demo        # needs chromium for the picture

The table is the one that the demo prints; the picture is a screenshot of its report.html.
"""

import argparse
import io
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console

from evals.summary import summary_table

ROOT = Path(__file__).resolve().parents[1]
README, PICTURE = ROOT / "README.md", ROOT / "docs" / "demo-report.png"
BEGIN, END = "<!-- demo table: written by scripts/readme_figures.py -->", "<!-- end of demo table -->"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1240, 1180


def table_of(directory: Path) -> str:
    """The demo's table as it stands in an 80 column terminal."""
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    text = io.StringIO()
    Console(width=80, file=text, color_system=None).print(summary_table(summary))
    lines = (line.rstrip() for line in text.getvalue().splitlines())
    return "\n".join(lines).strip("\n")


def take_picture(report: Path, picture: Path) -> None:
    """The top of the report as a PNG, from a headless browser.

    Raises:
        SystemExit: there is no browser.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"no browser for the picture; looked for {', '.join(BROWSERS)}")
    picture.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-background-networking",
            f"--user-data-dir={profile}",
            f"--window-size={WIDTH},{HEIGHT}",
            f"--screenshot={picture}",
        ]
        subprocess.run([browser, *options, report.resolve().as_uri()], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Put a finished demo's table and picture into the README.")
    parser.add_argument("directory", type=Path, help="the demo's output, as runs/demo")
    directory = parser.parse_args().directory
    text = README.read_text(encoding="utf-8")
    block = f"{BEGIN}\n\n```\n{table_of(directory)}\n```\n\n{END}"
    text, found = re.subn(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: block, text, flags=re.DOTALL)
    if not found:
        raise SystemExit(f"{README} lacks the line {BEGIN}")
    README.write_text(text, encoding="utf-8")
    take_picture(directory / "report.html", PICTURE)


if __name__ == "__main__":
    main()
