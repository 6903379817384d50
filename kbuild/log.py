"""Logging through structlog: readable on standard error, JSON lines in the run's folder.

Each event carries what is bound around it (`context(stage=…, host=…, order=…, step=…)`), also in
threads whose work was `carried` there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

import structlog

P = ParamSpec("P")
T = TypeVar("T")

Event = MutableMapping[str, Any]


class _Sink:
    """The end of the processor chain: one JSON line to the run's log, one readable line to the user."""

    def __init__(self, level: int, stream: IO[str]) -> None:
        self._level = level
        self._stream = stream
        self.files: dict[str, IO[str]] = {}
        """Logs of the runs that are at work, by their ids."""
        self._console = structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=24)

    def __call__(self, logger: Any, method: str, event: Event) -> str:
        own = self.files.get(event.get("run", ""))
        for file in [own] if own else [*self.files.values()]:
            # A full disk or a removed folder is found and said by whoever writes the record; the
            # log is not worth losing the run for.
            with contextlib.suppress(OSError):
                file.write(json.dumps(event, default=str) + "\n")
        if getattr(logging, method.upper(), logging.INFO) >= self._level:
            shown = {key: value for key, value in event.items() if key != "run"}
            print(self._console(logger, method, shown), file=self._stream, flush=True)
        raise structlog.DropEvent


def configure(verbosity: int = 0, stream: IO[str] | None = None) -> None:
    """Set up logging for this process. `verbosity`: -1 errors only, 0 warnings, 1 all stages, 2 everything."""
    level = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _Sink(level, stream or sys.stderr),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        cache_logger_on_first_use=False,
    )


@contextlib.contextmanager
def kept(run: str, file: Path) -> Iterator[None]:
    """Write each event of a run to a file, as JSON lines: those with `run` bound to its id, and those of no run."""
    files = structlog.get_config()["processors"][-1].files
    with file.open("a", buffering=1, encoding="utf-8") as log_file, context(run=run):
        files[run] = log_file
        try:
            yield
        finally:
            del files[run]


def get() -> structlog.typing.FilteringBoundLogger:
    """The logger. Call it where it is used: the configuration may change between runs."""
    if not structlog.is_configured():
        configure()  # structlog's own default would print to standard output, which is for answers
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger


@contextlib.contextmanager
def context(**values: Any) -> Iterator[None]:
    """Every event inside carries these values."""
    with structlog.contextvars.bound_contextvars(**values):
        yield


@contextlib.contextmanager
def timed(event: str, **values: Any) -> Iterator[dict[str, Any]]:
    """Log `event` when the block ends, with its seconds and how it ended; what is put into the dict goes along."""
    start = time.monotonic()
    extra: dict[str, Any] = {}
    get().debug(f"{event}.start", **values)
    try:
        yield extra
    except BaseException as error:
        seconds = round(time.monotonic() - start, 3)
        get().info(event, ended=type(error).__name__, reason=str(error), seconds=seconds, **values, **extra)
        raise
    get().info(event, ended="ok", seconds=round(time.monotonic() - start, 3), **values, **extra)


def carried(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, to be called in another thread with the values that are bound here."""
    values = structlog.contextvars.get_contextvars()

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with context(**values):
            return function(*args, **kwargs)

    return call
