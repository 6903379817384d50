"""Reads and later writes of the same bytes, on ways that end in success: facts of states, and pairs of them.

A fact says that something may have happened on a way to a state. Each is a bit; facts are united where ways meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iced_x86 import Mnemonic

from kbuild.elf.code.budget import INSTRUCTION
from kbuild.elf.code.calls import NOTHING, Call
from kbuild.elf.code.decode import MEMORY, RAX
from kbuild.elf.code.flow import Flow
from kbuild.elf.code.link import KERNEL, Program
from kbuild.elf.code.machine import OWN
from kbuild.elf.code.runs import Question
from kbuild.elf.code.state import State
from kbuild.elf.code.values import MASK, Value, is_within

PRINTS = frozenset({"_printk", "printk", "__warn_printk", "___ratelimit", "_dev_warn", "_dev_err"})
"""The kernel's functions that only say something: a read that decides that and no more is no use of a value."""
GRANULE = 8
_COUNTS = frozenset({Mnemonic.INC, Mnemonic.DEC, Mnemonic.ADD, Mnemonic.SUB, Mnemonic.XADD})


@dataclass(frozen=True, slots=True)
class Access:
    """Of bytes of an object, from `start` to before `end`."""

    start: int
    end: int
    site: int
    """The instruction, or the call that copies."""
    function: int
    """The one that was run, by its address."""
    chain: tuple[int, ...]
    """The calls that led to it, from the entry's on."""
    value: int | None
    """What was read or written, where that is one number."""
    shared: bool
    """Atomic, or one up or down in place: a lock, a count, a flag that others look at."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A read, and a write of some of the same bytes later on the same way."""

    read: Access
    write: Access
    used: bool
    """Between them another object was written, a function called that does more than print, or one returned. Else the
    read can only have decided the write."""


class Watch(Question):
    """Finds pairs. The facts of the states of its runs are its own: no other question that has some may go along."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._is_data: dict[int, bool] = {}
        self._clear()

    def _clear(self) -> None:
        self._bits: dict[Access | Pair, int] = {}
        self._facts: dict[int, Access | Pair] = {}
        """By the bit's number."""
        self._next = 0
        self._reads: dict[int, int] = {}
        """Facts of reads that are about some of the bytes there, by address and in `GRANULE` bytes."""
        self._fresh = 0
        """Facts of reads that nothing was done with yet. Each one's next bit says that something may have been."""
        self._succeeded = 0

    def begin(self, flow: Flow, first_mark: int) -> None:  # noqa: ARG002
        self._flow = flow
        self._clear()

    def extent(self) -> tuple[int, int] | None:
        """The kernel's own data and all of the modules'."""
        return KERNEL, self._program.extent[1]

    # What happens.

    def accessed(self, state: State, what: str, start: int, end: int) -> None:
        # Of what each CPU has for itself no other one reads what is not written yet.
        if what == "lent" or what.startswith(OWN) or not self._writable(start):
            return
        one = self._access(state, start, end)
        if what == "read":
            state.facts |= 1 << self._bit(one)
        else:
            self._written(state, one)

    def entered(self, state: State, call: Call) -> None:
        if not (call.of_kernel and call.name is not None and call.name.symbol in PRINTS | NOTHING):
            self._used(state)

    def returned(self, state: State, call: Call) -> list[State]:
        if not call.of_kernel:
            self._used(state)
        return [state]

    def ended(self, states: Sequence[State]) -> None:
        for state in states:
            result = state.registers[RAX]
            if result is None or is_within(0, state.ranges(self._flow.machine.part(result, 4))):
                self._succeeded |= state.facts

    def pairs(self) -> list[Pair]:
        """Of the ways that end in success."""
        return [fact for bit, fact in self._facts.items() if isinstance(fact, Pair) and self._succeeded >> bit & 1]

    # Facts.

    def _written(self, state: State, write: Access) -> None:
        about = 0
        for address in range(write.start // GRANULE, (write.end - 1) // GRANULE + 1):
            about |= self._reads.get(address, 0)
        hits, same = state.facts & about, 0
        # There may be as many pairs as there are reads, times the writes; and the more facts, the longer are numbers.
        if not self._flow.budget.spend((INSTRUCTION + (self._next >> 12)) * hits.bit_count()):
            return
        while hits:
            low = hits & -hits
            hits ^= low
            bit = low.bit_length() - 1
            used = bit not in self._facts
            read = self._facts[bit - used]
            assert isinstance(read, Access)
            if read.start < write.end and write.start < read.end:
                same |= low
                # Read and written by one instruction, in a loop perhaps: the very same update.
                if read.site != write.site:
                    state.facts |= 1 << self._bit(Pair(read, write, used))
        self._used(state, but=same)

    def _used(self, state: State, but: int = 0) -> None:
        fresh = state.facts & self._fresh & ~but
        if fresh:
            state.facts = state.facts & ~fresh | fresh << 1

    def _bit(self, fact: Access | Pair) -> int:
        bit = self._bits.get(fact)
        if bit is None:
            bit = self._bits[fact] = self._next
            self._facts[bit] = fact
            self._next += 1
            if isinstance(fact, Access):
                self._next += 1
                self._fresh |= 1 << bit
                for address in range(fact.start // GRANULE, (fact.end - 1) // GRANULE + 1):
                    self._reads[address] = self._reads.get(address, 0) | 3 << bit
        return bit

    def _access(self, state: State, start: int, end: int) -> Access:
        flow = self._flow
        frame, op = flow.frame, flow.op
        assert frame is not None
        assert op is not None
        function = frame.entry
        chain = []
        while frame.parent is not None:
            chain.append(frame.site)
            frame = frame.parent
        value: Value | None = None
        if end - start in MASK:
            kept = state.memory.get(start)
            if kept is None:
                value = flow.machine.unwritten(state, start, end - start)
            elif kept[0] == end - start:
                value = kept[1]
        number = value if isinstance(value, int) else None
        shared = op.raw.has_lock_prefix or (op.mnemonic in _COUNTS and op.operands[0].kind == MEMORY)
        return Access(start, end, op.ip, function, tuple(reversed(chain)), number, shared)

    def _writable(self, address: int) -> bool:
        """Whether it is an object's that can be written to."""
        known = self._is_data.get(address)
        if known is None:
            program = self._program
            if program.module_at(address) is None:
                known = program.kernel_name(address) is not None
            else:
                outside = program.place(address) is None
                known = not (outside or program.is_constant(address) or program.is_code(address))
            self._is_data[address] = known
        return known
