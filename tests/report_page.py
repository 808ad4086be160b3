"""A page of the report as a browser would read it."""

import json
import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser would read them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.chunks: list[str] = []
        self.scripts: dict[str, str] = {}
        self.script: str | None = None
        self.headings: list[tuple[str, str]] = []  # tag and text
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.script = dict(attrs).get("id", "code") if tag == "script" else None

    def handle_endtag(self, tag):
        self.script = None if tag == "script" else self.script

    def handle_data(self, data):
        if self.script is not None:
            self.scripts[self.script] = data
        else:
            self.chunks.append(data)
            if self.tags and self.tags[-1][0] in ("h1", "h2", "h3", "h4") and data.strip():
                self.headings.append((self.tags[-1][0], re.sub(r"\s+", " ", data.strip())))

    def values(self, *names):
        return [value for _, attrs in self.tags for name, value in attrs.items() if name in names]

    @property
    def samples(self):
        """What the browser of samples has."""
        return json.loads(self.scripts["sample-data"])

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.chunks))
