"""Text of guests, patches and compilers, made fit for a report: nothing in it moves a cursor or ends a line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

MAX_LINES = 200
"""Shown of a log or of evidence; the record has what it bounded itself."""
MAX_CHARACTERS = 2000
"""Of a line."""
_TAIL = 40
"""Of these lines, the last ones: they say how it ended."""
# C0 but for tab, DEL, C1; what turns the direction of text; surrogates; what is no character in XML 1.0.
_BAD = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufffe\uffff]"
)


def one_line(text: str) -> str:
    """The text in one line of bounded length, with what does not print as an escape."""
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:MAX_CHARACTERS]} [… {len(text) - MAX_CHARACTERS} more characters]"
    return visible(text)


def visible(text: str) -> str:
    """The text in one line, however long, with what does not print as an escape."""
    return _BAD.sub(_escape, text)


def all_visible(text: str) -> str:
    """The same of text that may have several lines."""
    return "\n".join(map(visible, text.split("\n")))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def lines(texts: Sequence[str], limit: int = MAX_LINES) -> Iterator[str]:
    """Each line of the texts, cleaned; of too many the beginning and the end, and how many were left out."""
    every = [line for text in texts for line in text.split("\n")]
    left = len(every) - limit
    if left <= 0:
        yield from map(one_line, every)
        return
    tail = min(_TAIL, limit // 3)
    yield from map(one_line, every[: limit - tail])
    yield f"[… {left} more lines in the record]"
    yield from map(one_line, every[len(every) - tail :])
