"""What a browser would make of a page, and what each page promises: it is whole, and loads and runs nothing."""

from __future__ import annotations

import html
import html.parser
import re
from collections import Counter


class Page(html.parser.HTMLParser):
    """What a browser would make of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    VOID = ("meta", "br", "img", "link", "input")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "style"]
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "action")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.words.append(data)


def checked(text: str) -> Page:
    """The page, which is well-formed, loads nothing, and lets no script run but its own."""
    found = Page(text)
    assert found.open == []
    assert (found.tags["script"], found.tags["style"], found.tags["img"], found.tags["link"]) == (1, 1, 0, 0)
    assert not found.handlers
    assert all(address.startswith("#") for address in found.addresses)
    assert {address[1:] for address in found.addresses} <= {*found.ids}, "each link leads somewhere"
    assert len({*found.ids}) == len(found.ids)
    assert "default-src 'none'" in html.unescape(text)
    assert not re.search(r"https?://|@import|url\(", text)
    return found
