"""Inlined functions as calls: what a rule knows of a way that goes through their instructions.

Instructions of an inlined function that come before its beginning, or that leave nothing behind, may be there though
it was not called: a compiler does what costs nothing before it is known to be needed. So it counts

- as `then` for sure where it began and does something (writes memory, or calls); perhaps with its first instruction;
- as `first` where it began, did something, and is over: none of its instructions can come any more in this run of the
  function that it is in, or that one calls something itself, or returns. Else it may have happened, or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from kbuild.elf.code.inlined import Part

HAPPENED, ACTIVE, BROKEN, MAYBE, HERE = 1, 2, 4, 8, 16
"""What a state's mark says of a rule: `first` has happened, a `within` is active, `then` came too early; `first` may
have happened; what is being run is itself in an inlined `within`."""
_FIRST = 5
_TOUCHED, _ENTERED, _DONE, _TOLD = 1, 2, 4, 8
"""Behind these, of each body that is not over: an instruction of it was run; its first one; one that does something (of
`then`: where it may not come); a call in it that the event names too has said with which string."""
_BITS, _ALL = 4, 15


@dataclass(frozen=True)
class Bodies:
    """The bodies that an event is in, as a set of them."""

    of: int
    counts: bool
    """It can be told that it was what the event asks for: of its result and its arguments nothing is known."""
    position: int = 0
    """How many bodies' bits in a mark come before these."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Each body's bit, and how far its own bits in a mark are shifted."""
        rest, number = self.of, self.position
        while rest:
            lowest = rest & -rest
            yield lowest, _FIRST + _BITS * number
            rest ^= lowest
            number += 1

    def __len__(self) -> int:
        return self.of.bit_count()


@dataclass(frozen=True)
class Passing:
    """What one rule is about."""

    first: Bodies
    then: Bodies
    within: int
    by_access: bool
    """`first` is an access: a compiler may exchange it with others."""

    @property
    def all(self) -> int:
        """Bodies of any event."""
        return self.first.of | self.then.of | self.within

    def block(self, mark: int, part: Part) -> int:
        """The mark in a block of a function that has some of them."""
        mark = self._here(mark, part)
        for one, shift in (*self.first, *self.then):
            mark |= (_ENTERED << shift) if part.begins & one else 0
        for one, shift in self.first:
            if part.inside & one:
                mark |= _TOUCHED << shift
                if part.effects and mark >> shift & _ENTERED:
                    mark |= _DONE << shift
            elif part.over & one:
                mark = self._left(mark, shift)
        for one, shift in self.then:
            if part.inside & one:
                mark |= _TOUCHED << shift
            elif part.over & one:
                mark &= ~(_ALL << shift)
        return mark

    def call(self, mark: int, part: Part) -> int:
        """The mark when a call is made at the end of a block: those that it does not belong to are over."""
        if mark & HERE:
            mark = mark & ~HERE | ACTIVE
        for one, shift in self.first:
            if part.inside & one:
                mark |= (_DONE << shift) if mark >> shift & _ENTERED else 0
            elif part.of & one:
                mark = self._left(mark, shift)
        for one, shift in self.then:
            if part.of & ~part.inside & one:
                mark &= ~(_ALL << shift)
        return mark

    def back(self, mark: int, part: Part) -> int:
        """The mark when such a call has returned."""
        return mark & ~ACTIVE | HERE if part.inside & self.within else mark

    def end(self, mark: int, of: int) -> int:
        """The mark when a function that has some of them returns."""
        if self.within & of:
            mark &= ~HERE
        for one, shift in self.first:
            if of & one:
                mark = self._left(mark, shift)
        for one, shift in self.then:
            if of & one:
                mark &= ~(_ALL << shift)
        return mark

    def begun(self, before: int, mark: int, part: Part) -> int:
        """Bodies that begin with a block, with the marks before and in it."""
        found = 0
        for bodies in (self.first, self.then):
            for one, shift in bodies:
                if part.begins & one and mark >> shift & _ENTERED and not before >> shift & _ENTERED:
                    found |= one
        return found

    def then_in(self, part: Part) -> list[tuple[int, int]]:
        """Bodies of `then` that a block belongs to, each with its shift."""
        return [(one, shift) for one, shift in self.then if part.inside & one]

    def untold(self, before: int, mark: int) -> bool:
        """Whether a body of `then` is over that may not have come, and of which nobody said what it is given."""
        return any(
            before >> shift & _DONE and not before >> shift & _TOLD and not mark >> shift & _ALL
            for _, shift in self.then
        )

    def is_sure(self, mark: int, part: Part | None, by: Literal["call", "access"]) -> bool:
        """Whether what is done in a block, and is `then`, is certain to come where the mark says that it does."""
        if mark & MAYBE and not mark & HAPPENED:
            return False
        if part is None or by == "call":
            return True
        # What is no call may have been moved into an inlined function, or out of it, or before it.
        if self.by_access and part.inside & self.then.of:
            return False
        outside = self.first.of & part.of & ~part.inside & ~part.over
        if any(mark >> shift & _ALL for one, shift in self.first if part.of & ~part.inside & one):
            return False
        return not outside and not self.within & part.of & ~part.inside

    def _here(self, mark: int, part: Part) -> int:
        if self.within & part.inside:
            return mark | HERE
        return mark & ~HERE if self.within & part.of else mark

    def _left(self, mark: int, shift: int) -> int:
        bits = mark >> shift & _ALL
        if not bits:
            return mark
        return mark & ~(_ALL << shift) | (HAPPENED if bits & _DONE and self.first.counts else MAYBE)


def waiting(mark: int, shift: int) -> int:
    """The mark, with a body of `then` that may not come where it is, if it is what the event asks for."""
    return mark | _DONE << shift


def told(mark: int, shift: int) -> int:
    """The mark, with a body of `then` of which is known whether it is that."""
    return mark | _TOLD << shift


def is_entered(mark: int, shift: int) -> bool:
    """Whether a body that is not over was entered at its beginning."""
    return bool(mark >> shift & _ENTERED)
