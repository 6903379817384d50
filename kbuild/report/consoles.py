"""Consoles on which nothing that comes from elsewhere, be it a guest's or in a `.ko` file, commands the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment

from kbuild.report import clean


class _Cleaned:
    """What is printed, with what does not print as an escape; what moves rich's own bars stays."""

    def __init__(self, inner: ConsoleRenderable) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._inner, options):
            text = segment.text if segment.control else clean.all_visible(segment.text)
            yield Segment(text, segment.style, segment.control)


class _Cleaner(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Cleaned(one) for one in renderables]


def console_on(stream: IO[str], **options: Any) -> Console:
    """A console on a stream; `options` are those of rich's `Console`."""
    console = Console(file=stream, highlight=False, emoji=False, **options)
    console.push_render_hook(_Cleaner())
    return console
