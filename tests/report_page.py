"""A report page taken apart, and its run folder changed."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tutelage.reporting.page import write_report

VOID = {"meta", "image", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """A page taken apart: tags with attributes, text, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(run: Path) -> Page:
    page = Page(write_report(run).read_text())
    assert page.open == [], "unclosed tags"
    return page


def change_record(place: Path, **changes: Any) -> None:
    record = json.loads(place.read_text()) | changes
    place.write_text(json.dumps({key: value for key, value in record.items() if value is not ...}))
