"""Lines of a mail: 72 columns, commands that can be pasted, and lists that somebody reads."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kbuild.report import clean

WIDTH = 72
MAX_LISTED = 40
_LABEL = 12


def mail(parts: Iterable[Iterable[str]]) -> str:
    """The parts that have lines, with an empty line between them."""
    return "\n\n".join("\n".join(part) for part in map(list, parts) if part) + "\n"


def section(title: str, body: Iterable[str]) -> list[str]:
    """A part with its title, where it has something."""
    lines = list(body)
    return [f"{title}:", *lines] if lines else []


def listed(entries: Iterable[str]) -> Iterator[str]:
    """Each entry in lines of its own, and no more of them than anybody reads."""
    every = list(entries)
    for entry in every[:MAX_LISTED]:
        yield from wrapped(clean.one_line(entry), "  ", "    ")
    if len(every) > MAX_LISTED:
        yield f"  and {len(every) - MAX_LISTED} more, which are in the record"


def again(command: str | None, folder: Path) -> Iterator[str]:
    """The command that shows something again, where there is one."""
    if command is not None:
        yield "  again:"
        yield from commanded(command, folder)


def commanded(command: str, folder: Path) -> Iterator[str]:
    """The command, one option to a line where it is too long for one; a word that is longer stays whole."""
    try:
        words = [clean.visible(word.replace(str(folder), "$RUN")) for word in shlex.split(command)]
    except ValueError:
        yield from quoted(clean.one_line(command))
        return
    if not words:
        return
    if words[0].endswith("/inv"):
        words[0] = "inv"
    line = "    " + words[0]
    for part in _parts(words[1:]):
        if len(line) + len(part) + 3 > WIDTH:
            yield f"{line} \\"
            line = "        " + part
        else:
            line += " " + part
    yield line


def _parts(words: Sequence[str]) -> list[str]:
    """The words quoted, each option with its value."""
    parts: list[str] = []
    waiting = False
    for word in words:
        quoted = word if word.startswith("$RUN/") else shlex.quote(word)
        if waiting and not word.startswith("-"):
            parts[-1] += f" {quoted}"
        else:
            parts.append(quoted)
        waiting = word.startswith("--") and "=" not in word and parts[-1] == quoted
    return parts


def labelled(label: str, text: str) -> Iterator[str]:
    """What has a name, in a column of its own."""
    if text:
        # A label that fills its column still has a blank behind it.
        yield from wrapped(clean.one_line(text), f"  {label:{_LABEL - 1}} ", " " * (_LABEL + 2))


def quoted(line: str) -> Iterator[str]:
    """A line of evidence: its own blanks stay, and what does not fit goes on further to the right."""
    line = line.expandtabs(8)
    first = "    " + line[: len(line) - len(line.lstrip())][:16]
    yield from wrapped(line.strip(), first, first + "    ")


def wrapped(text: str, first: str = "", later: str | None = None) -> list[str]:
    """The text in lines, the first and the later ones indented so."""
    later = first if later is None else later
    lines = textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)
    return lines or [first.rstrip()]
