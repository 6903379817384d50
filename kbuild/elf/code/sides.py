"""Two parts of an analysis at the same time, each in a process of its own, which tell each other of it."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

T = TypeVar("T")


class _LostError(Exception):
    """The other side has ended before its time."""


class Side:
    """One of the two, as it talks to the other."""

    def __init__(self, read: int, write: int, *, speaks_first: bool) -> None:
        self._read = os.fdopen(read, "rb")
        self._write = os.fdopen(write, "wb")
        self._speaks_first = speaks_first

    def swap(self, mine: T) -> T:
        """Give the other side a value, and wait for that which it gives at the same place of its work."""
        if self._speaks_first:
            self.say(mine)
        theirs: T = self.hear()
        if not self._speaks_first:
            self.say(mine)
        return theirs

    def say(self, value: object) -> None:
        """Give the other side a value."""
        try:
            pickle.dump(value, self._write)
            self._write.flush()
        except BrokenPipeError:
            raise _LostError from None

    def hear(self) -> Any:
        """Wait for a value from the other side."""
        try:
            return pickle.load(self._read)
        except (EOFError, pickle.UnpicklingError):
            raise _LostError from None


def can_be_two() -> bool:
    """Whether a second process has a CPU to run on, and may be made: a copy of a process with threads lacks these."""
    return len(os.sched_getaffinity(0)) > 1 and threading.active_count() == 1


class _Process:
    """The process of one side. What this one has begun is not ended there: nothing of it is to be ended twice."""

    def __init__(
        self, work: Callable[[Side], object], ends: tuple[int, int], others: tuple[int, int], *, speaks_first: bool
    ) -> None:
        """`ends`: what it reads and writes; `others`: the same of the other side, which nobody else may keep open."""
        read, write = os.pipe()
        self._child = os.fork()
        if not self._child:
            try:
                for end in (*others, read):
                    os.close(end)
                given = work(Side(*ends, speaks_first=speaks_first))
                with os.fdopen(write, "wb") as file:
                    pickle.dump(given, file)
            finally:
                os._exit(0)
        os.close(write)
        self._given = os.fdopen(read, "rb")

    def wait(self) -> Any:
        """What it gives."""
        try:
            return pickle.load(self._given)
        except (EOFError, pickle.UnpicklingError):
            raise _LostError from None

    def end(self) -> None:
        """Be it done or not."""
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        self._given.close()


def side_by_side(
    first: Callable[[Side], T], second: Callable[[Side], T], meanwhile: Callable[[], object] | None = None
) -> tuple[T, T] | None:
    """What both give, each in a process of its own; what they swap and give is pickled.

    `meanwhile` is done in this one. None: one of them has failed, or was killed; whoever does its work again finds out
    why.
    """
    (first_reads, second_writes), (second_reads, first_writes) = os.pipe(), os.pipe()
    ends = (first_reads, first_writes), (second_reads, second_writes)
    with ExitStack() as stack:
        with ExitStack() as closing:
            for end in (*ends[0], *ends[1]):
                closing.callback(os.close, end)
            one = _Process(first, ends[0], ends[1], speaks_first=False)
            stack.callback(one.end)
            other = _Process(second, ends[1], ends[0], speaks_first=True)
            stack.callback(other.end)
        if meanwhile is not None:
            meanwhile()
        try:
            return one.wait(), other.wait()
        except _LostError:
            return None
