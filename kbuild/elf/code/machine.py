"""What instructions do to a state. An instruction that is not modelled makes unknown what it writes, and nothing else.

Intel SDM, volume 2. Flags are kept as the operation that set them, and asked when a condition is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

from iced_x86 import InstructionInfoFactory, Mnemonic, OpAccess

from kbuild.elf.code.bits import Bits
from kbuild.elf.code.decode import (
    ARGUMENTS,
    MEMORY,
    NUMBER,
    PRESERVED,
    RAX,
    RBP,
    RBX,
    RCX,
    RDI,
    RDX,
    REGISTER,
    RSI,
    RSP,
    Op,
    Operand,
    register,
)
from kbuild.elf.code.link import KERNEL, MODULES, Program
from kbuild.elf.code.parameters import Parameter
from kbuild.elf.code.state import NOTES, NOTES_END, STACK, STACK_END, WORD, Place, State
from kbuild.elf.code.targets import MAX_SPAN, OnStack, Span, Targets
from kbuild.elf.code.values import (
    EVERYTHING,
    MASK,
    NEGATED,
    SIGN,
    SWAPPED,
    Ranges,
    Symbols,
    Unknown,
    Value,
    intersection,
    rotated,
    satisfying,
    truncated,
    union,
)

Handler = Callable[["Machine", State, Op], None]
Access = Callable[[State, str, int, int], None]
"""Told of a read, a store, or that somebody else may have done either (`lent`), from an address to before another."""
MAX_WRITTEN = 4096
"""Bytes of an instruction that does not say how many it writes: `xsave`."""
MAX_FEW = 4
"""Numbers that are looked at one by one."""
MAX_OPEN = 256
"""Objects that others may have written to; of more, all between the first and the last is one. KVM has up to 92."""
MAX_REPEAT = 4096
"""Times that a string instruction is followed step by step."""
KERNEL_DATA = -2
"""In place of a symbol: the kernel's own data is like what is behind a pointer of which nothing is known."""
SETTLED = frozenset({"boot_cpu_data", "x86_hyper_type", "nr_cpu_ids", "__per_cpu_offset", "page_offset_base"})
"""Data of the kernel that stays as it is once it has booted (arch/x86/kernel/setup.c, cpu/common.c, setup_percpu.c)."""
_WRITES = frozenset({OpAccess.WRITE, OpAccess.READ_WRITE, OpAccess.COND_WRITE, OpAccess.READ_COND_WRITE})
_FLAG = ((0, 1),)
_EXTENDED = ("zero-extended", "sign-extended")


class Machine:
    """Instructions on states, for one program."""

    def __init__(
        self,
        program: Program,
        symbols: Symbols,
        knows: frozenset[str],
        after: Machine | None = None,
        given: Sequence[Parameter] = (),
    ) -> None:
        """`knows`: modules whose writable data is as in their files at the start, but for what is `given`, parameters;
        `after`: whose unknowns it meets."""
        self.program = program
        self.symbols = symbols
        self._knows = knows
        self._parameters: Sequence[Parameter] = given if after is None else after._parameters
        self.unread: set[str] = set()
        """Why something that was read is not known."""
        self.targets = Targets(program, symbols)
        self.frame: OnStack | None = None
        """The function whose instructions are done."""
        self._reached: dict[Span, None] = {} if after is None else after._reached
        """What pointers may have led to of which only a part is known: a write there may be to what is behind them."""
        self._reached_words: set[int] = set() if after is None else after._reached_words
        """The same, by the words' numbers."""
        self._reached_all: bool = after is not None and after._reached_all
        """Whether it is too much to be told by words."""
        self._info = InstructionInfoFactory()
        self.repeated = 0
        """What was done by instructions, or calls, that do something many times; whoever counts work takes it."""
        self._watched = (1, 0)
        self._told: Access | None = None
        self._low: dict[int, tuple[int, Value]] = {} if after is None else after._low
        """Unknowns of which the low bytes are known: a write to a part of a register."""
        self.bits: Bits = Bits(symbols) if after is None else after.bits
        self._files: dict[tuple[int, int], tuple[bool, Value | None]] = {}

    def watch(self, start: int, end: int, told: Access) -> None:
        """Tell of each access to what lies between, to its last byte."""
        self._watched, self._told = (start, end), told

    def _tell(self, state: State, what: str, start: int, end: int) -> None:
        if self._told is not None and start < self._watched[1] and end > self._watched[0]:
            self._told(state, what, start, end)

    # Values.

    def unknown(self, size: int, origin: object) -> Unknown:
        """An unknown that is no other."""
        return (self.symbols.new(origin), 0, size)

    def derived(self, size: int, *origin: object) -> Unknown:
        """The unknown that these operands always make."""
        return (self.symbols.of(origin), 0, size)

    def add(self, x: Value, y: Value, size: int) -> Value:
        """Their sum."""
        if isinstance(x, int):
            if isinstance(y, int):
                return (x + y) & MASK[size]
            x, y = y, x
        if not isinstance(y, int):
            return self.derived(size, "add", x, y, size)
        if not y:
            return truncated(x, size)
        if x[2] < size:
            x = self.derived(size, "zero-extended", x, size)
        return (x[0], (x[1] + y) & MASK[size], size)

    def ranges(self, state: State, value: Unknown) -> Ranges:
        """What it can be, as the state knows or its bits tell."""
        return state.known.get(value) or self.bits.ranges(value) or EVERYTHING[value[2]]

    def part(self, value: Value, size: int) -> Value:
        """The low bytes of a register."""
        if not isinstance(value, int) and size < value[2]:
            low = self._low.get(value[0])
            if low is not None and not value[1] and low[0] >= size:
                return truncated(low[1], size)
            origin = self.symbols.origin[value[0]]
            if isinstance(origin, tuple) and origin[0] in _EXTENDED and origin[1][2] >= size:
                # As it was before: so `lea 1(%rax),%edx` is one more than the four bytes that were read into %eax.
                symbol, start, _ = origin[1]
                return (symbol, (start + value[1]) & MASK[size], size)
        return truncated(value, size)

    # Registers and memory.

    def register(self, state: State, number: int) -> Value:
        """All of a register."""
        value = state.registers[number]
        if value is None:
            value = state.registers[number] = self.unknown(8, "register")
        return value

    def address(self, state: State, operand: Operand) -> Value | None:
        """What a memory operand points to; None: into a segment of its own."""
        return None if operand.segment else self.offset(state, operand)

    def offset(self, state: State, operand: Operand) -> Value:
        """The same, whatever the segment."""
        address: Value = operand.number
        if operand.base is not None:
            address = self.add(self.register(state, operand.base), address, 8)
        if operand.index is not None:
            index = self.register(state, operand.index)
            scaled: Value
            if isinstance(index, int):
                scaled = (index * operand.scale) & MASK[8]
            else:
                scaled = index if operand.scale == 1 else self.derived(8, "scaled", index, operand.scale)
            address = self.add(address, scaled, 8)
        return address

    def load(self, state: State, address: Value | None, size: int) -> Value:
        """What is read there."""
        if address is None or size not in MASK:
            return self.unknown(size if size in MASK else 8, "segment")
        if isinstance(address, int):
            if self._watched[0] <= address < self._watched[1]:
                self._tell(state, "read", address, address + size)
            if not self._may_change(address):
                return self.contents(state, address, size)
            address = (KERNEL_DATA, address, 8)
        else:
            for span in self.reach(state, address, size):
                self._tell(state, "lent", *span)
        symbol, start, _ = address
        kept = state.behind.get((symbol, start))
        if kept is not None and kept[0] >= size:
            return self.part(kept[1], size)
        if kept is not None or state.overlaps(start, size, symbol):
            return self._assembled(state, start, size, symbol)
        return self._original(state, start, size, symbol)

    def contents(self, state: State, address: int, size: int) -> Value:
        """What is at an address; nobody is told."""
        kept = (state.stack if STACK_END < address < STACK else state.memory).get(address)
        if kept is not None and kept[0] >= size:
            return self.part(kept[1], size)
        if kept is not None or state.overlaps(address, size):
            return self._assembled(state, address, size, None)
        return self.unwritten(state, address, size)

    def _original(self, state: State, start: int, size: int, symbol: int | None) -> Value:
        if symbol is None:
            return self.unwritten(state, start, size)
        return self.derived(size, "memory", symbol, start, size, state.epoch)

    def _assembled(self, state: State, start: int, size: int, symbol: int | None) -> Value:
        """What is read where several writes, or parts of some, are."""
        pieces: list[tuple[int, Value]] = []
        at = start
        while at < start + size:
            for offset in range(at - 7, at + 1):
                kept = state.entry(offset if symbol is None else (symbol, offset))
                if kept is not None and offset + kept[0] > at:
                    count = min(offset + kept[0], start + size) - at
                    pieces.append((count, self.shifted(kept[1], at - offset, kept[0])))
                    break
            else:
                count = 1
                pieces.append((1, self._original(state, at, 1, symbol)))
            at += count
        if len(pieces) == 1:
            return truncated(pieces[0][1], size)
        if all(isinstance(piece, int) for _, piece in pieces):
            number = shift = 0
            for count, piece in pieces:
                assert isinstance(piece, int)
                number |= (piece & ((1 << 8 * count) - 1)) << shift
                shift += 8 * count
            return number
        return self.derived(size, "bytes", tuple(pieces))

    def shifted(self, value: Value, count: int, size: int) -> Value:
        """A value without its lowest bytes."""
        if isinstance(value, int):
            return value >> 8 * count
        return self.derived(size, "shr", truncated(value, size), 8 * count, size) if count else value

    def unwritten(self, state: State, address: int, size: int) -> Value:
        """What is at an address that no instruction has written to on this way."""
        constant, number = self._in_file(address, size)
        if not constant:
            for (start, end), since in state.open.items():
                if start < address + size and address < end:
                    return self.derived(size, "memory", address, size, since)
        return self.derived(size, "memory", address, size) if number is None else number

    def know_parameters(self, state: State) -> None:
        """What the parameters can be, where nothing has been done yet."""
        for one in self._parameters:
            if one.ranges is not None:
                size = one.end - one.start
                state.know(self.derived(size, "memory", one.start, size), one.ranges)

    def _in_file(self, address: int, size: int) -> tuple[bool, Value | None]:
        """Whether what is there cannot change, and what it is at the start; None: that is not known."""
        found = self._files.get((address, size))
        if found is None and NOTES <= address < NOTES_END:
            found = self._files[address, size] = True, 0
        elif found is None:
            linked = self.program.module_at(address)
            constant = self.program.is_constant(address)
            is_known = constant or (linked is not None and linked.name in self._knows)
            is_given = any(one.start < address + size and address < one.end for one in self._parameters)
            is_known = is_known and not is_given
            data = self.program.read(address, size) if is_known else None
            unread = self.program.unread(address, size) if data is not None else None
            value: Value | None = int.from_bytes(data, "little") if data is not None else None
            if unread is not None:
                self.unread.add(unread)
                value = self.derived(size, unread, address)
            found = self._files[address, size] = constant, value
        return found

    def _may_change(self, address: int) -> bool:
        """Whether that is the kernel's, which may write to it whenever it is called."""
        name = self.program.kernel_name(address) if KERNEL <= address < MODULES else None
        return name is not None and name.symbol not in SETTLED

    def store(self, state: State, address: Value | None, size: int, value: Value) -> None:
        """Write there."""
        if address is None or size not in MASK:
            state.epoch = self.symbols.new("epoch")
            return
        if isinstance(address, int) and self._may_change(address):
            self._forget(state, address, size, KERNEL_DATA)
            state.write((KERNEL_DATA, address), size, value)
            self._tell(state, "store", address, address + size)
        elif isinstance(address, int):
            words = self._reached_words
            if address // WORD in words or (address + size - 1) // WORD in words or self._reached_all:
                self.forget_behind(state)
            self._forget(state, address, size)
            state.write(address, size, value)
            if self._watched[0] <= address < self._watched[1]:
                self._tell(state, "store", address, address + size)
        else:
            for span in self.reach(state, address, size):
                self.forget(state, *span)
            self._forget(state, address[1], size, address[0])
            # What other unknown pointers lead to may be the same.
            self.forget_behind(state, but=address[0])
            state.write((address[0], address[1]), size, value)

    def reach(self, state: State, pointer: Unknown, size: int) -> Sequence[Span]:
        """Data of modules and parts of the stack that a pointer may lead to, by the addresses that it was made of."""
        spans = self.targets.of(state, pointer, size, self.frame)
        for span in spans:
            if span not in self._reached:
                self._reached[span] = None
                if span[1] - span[0] > MAX_SPAN:
                    self._reached_all = True
                else:
                    self._reached_words.update(range(span[0] // WORD, (span[1] - 1) // WORD + 1))
        return spans

    def _touch(self, state: State, start: int, end: int) -> None:
        """Something is written that a pointer may have led to of which only a part is known."""
        if any(first < end and start < last for first, last in self._reached):
            self.forget_behind(state)

    def forget(self, state: State, start: int, end: int) -> None:
        """Somebody else may have written from `start` to before `end`."""
        self._tell(state, "lent", start, end)
        self.repeated += min(end - start, len(state.memory)) // WORD
        written = [*state.memory, *state.stack] if end - start > len(state.memory) else range(start - WORD + 1, end)
        for place in written:
            kept = state.entry(place) if start - WORD < place < end else None
            if kept is None or place + kept[0] <= start:
                continue
            if start <= place and place + kept[0] <= end and not self._in_file(place, kept[0])[0]:
                state.remove(place)  # it is what `unwritten` says of `open`: one name for all that was forgotten
            else:
                state.write(place, kept[0], self.unknown(kept[0], "written by others"))
        # What it covers is forgotten with it: in a loop they do not become more.
        before = {known: since for known, since in state.open.items() if known[0] < start or known[1] > end}
        if len(before) >= MAX_OPEN:
            start, end = min(start, *(low for low, _ in before)), max(end, *(high for _, high in before))
            before = {}
        state.open = {(start, end): self.symbols.new("epoch"), **before}

    def _forget(self, state: State, start: int, size: int, symbol: int | None = None) -> None:
        """Entries that a write overlaps are no longer what is there, but for the very same place."""
        kept = state.entry(start if symbol is None else (symbol, start))
        if kept[0] == size if kept is not None else not state.overlaps(start, size, symbol):
            return
        for offset in range(start - WORD + 1, start + size):
            place: Place = offset if symbol is None else (symbol, offset)
            kept = state.entry(place)
            if kept is None or offset + kept[0] <= start:
                continue
            state.remove(place)
            # What remains of it on either side is unknown, not as it was at first.
            for byte in (*range(offset, start), *range(start + size, offset + kept[0])):
                rest: Place = byte if symbol is None else (symbol, byte)
                state.write(rest, 1, truncated(self.shifted(kept[1], byte - offset, kept[0]), 1))

    # Operands.

    def get(self, state: State, operand: Operand, size: int) -> Value:
        """An operand's value, of `size` bytes."""
        if operand.kind == REGISTER:
            # Most operands are registers: no further calls for them.
            value = state.registers[operand.number]
            if value is None:
                value = self.register(state, operand.number)
            if operand.high:
                return (value >> 8) & 0xFF if isinstance(value, int) else self.derived(1, "high", value)
            if size > operand.size:
                size = operand.size
            if isinstance(value, int):
                return value & MASK[size]
            return self.part(value, size) if size < value[2] else value
        if operand.kind == NUMBER:
            return operand.number & MASK[size]
        if operand.kind == MEMORY:
            size = operand.size or size
            if operand.segment and size in MASK and isinstance(at := self.offset(state, operand), int):
                return self.derived(size, "memory", at, size, ("segment", state.epoch))
            return self.load(state, self.address(state, operand), size)
        return self.unknown(size, "operand")

    def put(self, state: State, operand: Operand, value: Value) -> None:
        """Write an operand; `value` has its size."""
        if operand.kind == REGISTER:
            if operand.size >= 4:
                state.registers[operand.number] = value
                return
            old, size = self.register(state, operand.number), operand.size
            if operand.high:
                state.registers[operand.number] = self.derived(8, "high merged", old, value)
            elif isinstance(old, int) and isinstance(value, int):
                state.registers[operand.number] = (old & ~MASK[size]) | value
            else:
                merged = self.derived(8, "merged", old, value, size)
                self._low[merged[0]] = (size, value)
                state.registers[operand.number] = merged
        elif operand.kind == MEMORY:
            self.store(state, self.address(state, operand), operand.size, value)

    # Conditions.

    def decide(self, state: State, condition: str | None) -> tuple[Ranges, Ranges, Unknown | None]:
        """What the value that a condition is about can be where it holds, and where it does not.

        An empty one: that cannot be. Without a value: nothing can be learnt.
        """
        if condition is None or state.flags is None:
            return _FLAG, _FLAG, None
        kind, x, y, size = state.flags
        if kind == "bit":
            if condition not in ("b", "ae"):
                return _FLAG, _FLAG, None
            # The carry is the bit: set where the operand and the bit's mask have it in common.
            kind, condition = "and", "ne" if condition == "b" else "e"
        if kind == "and":
            if x == y:
                y = 0
            elif isinstance(x, int) and isinstance(y, int):
                x, y = x & y, 0
            else:
                x, y = self.bits.both(x, y, size), 0
        if condition in ("s", "ns"):
            if y != 0:
                return _FLAG, _FLAG, None
            condition = "l" if condition == "s" else "ge"
        elif kind == "result" and condition not in ("e", "ne"):
            return _FLAG, _FLAG, None
        if condition not in SWAPPED:
            return _FLAG, _FLAG, None
        if isinstance(x, int) and not isinstance(y, int):
            x, y, condition = y, x, SWAPPED[condition]
        if y == 0 and condition in ("e", "ne") and not isinstance(x, int):
            x = self._deciding(state, x)
            size = size if isinstance(x, int) else x[2]
        if isinstance(y, int):
            holds = satisfying(condition, y, size)
            if isinstance(x, int):
                x &= MASK[size]
                true = any(low <= x <= high for low, high in holds)
                return (_FLAG if true else ()), (() if true else _FLAG), None
            ranges = self.ranges(state, x)
            return intersection(ranges, holds), intersection(ranges, satisfying(NEGATED[condition], y, size)), x
        if x == y:
            true = condition in ("e", "ae", "be", "ge", "le")
            return (_FLAG if true else ()), (() if true else _FLAG), None
        # Two unknowns: what the comparison says is an unknown too, the same one each time.
        positive = condition in ("e", "b", "l", "be", "le")
        truth = self.derived(1, "compare", x, y, condition if positive else NEGATED[condition], size)
        ranges = intersection(state.ranges(truth), _FLAG)
        true_ranges, false_ranges = intersection(ranges, ((1, 1),)), intersection(ranges, ((0, 0),))
        return (true_ranges, false_ranges, truth) if positive else (false_ranges, true_ranges, truth)

    def _deciding(self, state: State, value: Unknown) -> Value:
        """What is 0 where that value is: the value, or the one bit of it of which it is not known."""
        bits = [self.bits.bit(value, index) for index in self.bits.perhaps(value)]
        if not bits:
            return value
        ranges = [((bit, bit),) if isinstance(bit, int) else self.ranges(state, bit) for bit in bits]
        if ((1, 1),) in ranges:
            return 1
        open_ = [bit for bit, known in zip(bits, ranges, strict=True) if known != ((0, 0),)]
        return value if len(open_) > 1 else open_[0] if open_ else 0

    def fault(self, state: State, number: int) -> None:
        """The last instruction faulted, and the kernel goes on elsewhere: what it gives is the kernel's to say."""
        for lost in (RAX, RDX, number):
            state.registers[lost] = self.unknown(8, "environment")
        state.flags = None

    def blind(self, state: State) -> None:
        """On this way a condition is taken to hold, or not to, of which it was lost what it is about."""
        state.know(self.unknown(1, "flags"), ((1, 1),))

    def chosen(self, state: State, op: Op, taken: bool) -> None:
        """Do a `cmov` or `sbb` whose condition is taken to hold or not to."""
        target = op.operands[0]
        size = target.size
        if op.mnemonic == Mnemonic.SBB:
            difference = self.difference(self.get(state, target, size), self.get(state, op.operands[1], size), size)
            self.put(state, target, self.add(difference, MASK[size] if taken else 0, size))
            state.flags = None
        else:
            self.put(state, target, self.get(state, op.operands[1] if taken else target, size))

    def difference(self, x: Value, y: Value, size: int) -> Value:
        """The first less the second."""
        if isinstance(y, int):
            return self.add(x, -y & MASK[size], size)
        return 0 if x == y else self.derived(size, "subtract", x, y, size)

    # Instructions.

    def step(self, state: State, op: Op) -> None:
        """Do an instruction that goes on to the next one."""
        handler = _HANDLERS.get(op.mnemonic)
        if handler is not None:
            handler(self, state, op)
        else:
            self.clobber(state, op)

    def clobber(self, state: State, op: Op) -> None:
        """An instruction that is not modelled: whatever it writes is unknown."""
        info = self._info.info(op.raw)
        for used in info.used_registers():
            if used.access in _WRITES and (found := register(used.register)) is not None:
                # An argument has been put there, if unknown: None would say that there is none.
                state.registers[found[0]] = self.unknown(8, "written") if found[0] in ARGUMENTS else None
        for operand in op.operands:
            if operand.kind == MEMORY and isinstance(address := self.address(state, operand), int):
                self._tell(state, "read", address, address + max(operand.size, 1))
        if any(used.access in _WRITES for used in info.used_memory()):
            self._clobber_memory(state, op)
        if op.raw.rflags_modified:
            state.flags = None

    def _clobber_memory(self, state: State, op: Op) -> None:
        target = next((operand for operand in op.operands if operand.kind == MEMORY), None)
        address = self.address(state, target) if target is not None else self.register(state, RDI)
        if address is None:
            return
        if target is not None and target.size in MASK:
            self.store(state, address, target.size, self.unknown(target.size, "written"))
        elif isinstance(address, int):
            end = address + (target.size if target and target.size else MAX_WRITTEN)
            self._touch(state, address, end)
            self.forget(state, address, end)
        else:
            self.forget_reached(state, address)

    def forget_reached(self, state: State, pointer: Unknown) -> None:
        """Somebody may have written where a pointer leads, and it is not known how much."""
        for span in self.reach(state, pointer, MAX_WRITTEN):
            self.forget(state, *span)
        self.forget_behind(state)

    def forget_from(self, state: State, start: int) -> None:
        """The same, of an address: as far as the section goes."""
        place = self.program.place(start)
        end = start - place[2] + place[1].size if place is not None else start + MAX_WRITTEN
        self._touch(state, start, end)
        self.forget(state, start, end)

    def forget_behind(self, state: State, but: int | None = None) -> None:
        """Memory that only unknown pointers lead to may have been written to; not at known offsets of one of them."""
        state.epoch = self.symbols.new("epoch")
        if state.behind:
            state.forget_behind(but)


def _move(machine: Machine, state: State, op: Op) -> None:
    target, source = op.operands
    size = target.size or source.size
    value = machine.get(state, source, size)
    if not isinstance(value, int) and value[2] > size:
        value = truncated(value, size)
    if target.kind == REGISTER and size >= 4:
        state.registers[target.number] = value
    else:
        machine.put(state, target, value)


def _extend_zero(machine: Machine, state: State, op: Op) -> None:
    target, source = op.operands
    machine.put(state, target, machine.get(state, source, source.size))


def _extend_sign(machine: Machine, state: State, op: Op) -> None:
    target, source = op.operands
    value = machine.get(state, source, source.size)
    _put_extended(machine, state, target, value, source.size)


def _put_extended(machine: Machine, state: State, target: Operand, value: Value, source: int) -> None:
    size = target.size
    if isinstance(value, int):
        value = (value - (1 << 8 * source) if value & SIGN[source] else value) & MASK[size]
    elif all(high < SIGN[source] for _, high in state.ranges(value)):
        pass  # positive: the same number
    else:
        ranges = state.ranges(value)
        value = machine.derived(size, "sign-extended", value, size)
        shift = MASK[size] - MASK[source]
        known: list[tuple[int, int]] = []
        for low, high in ranges:
            known += [(low, min(high, SIGN[source] - 1))] if low < SIGN[source] else []
            known += [(max(low, SIGN[source]) + shift, high + shift)] if high >= SIGN[source] else []
        state.know(value, intersection(state.ranges(value), tuple(sorted(known))))
    machine.put(state, target, value)


def _extend_accumulator(target: int, source: int) -> Handler:
    def handler(machine: Machine, state: State, _op: Op) -> None:
        value = machine.part(machine.register(state, RAX), source)
        _put_extended(machine, state, Operand(REGISTER, target, RAX), value, source)

    return handler


def _load_address(machine: Machine, state: State, op: Op) -> None:
    target, source = op.operands
    address = machine.address(state, source)
    size = target.size
    machine.put(state, target, machine.unknown(size, "segment") if address is None else machine.part(address, size))


def _push(machine: Machine, state: State, op: Op) -> None:
    value = machine.get(state, op.operands[0], 8)
    top = state.registers[RSP] = machine.add(machine.register(state, RSP), MASK[8] - 7, 8)
    machine.store(state, top, 8, value)


def _push_flags(machine: Machine, state: State, _op: Op) -> None:
    top = state.registers[RSP] = machine.add(machine.register(state, RSP), MASK[8] - 7, 8)
    machine.store(state, top, 8, machine.unknown(8, "environment"))


def _pop_flags(machine: Machine, state: State, _op: Op) -> None:
    state.registers[RSP] = machine.add(machine.register(state, RSP), 8, 8)
    state.flags = None


def _pop(machine: Machine, state: State, op: Op) -> None:
    top = machine.register(state, RSP)
    value = machine.load(state, top, 8)
    state.registers[RSP] = machine.add(top, 8, 8)
    machine.put(state, op.operands[0], value)


def _leave(machine: Machine, state: State, _op: Op) -> None:
    top = machine.register(state, RBP)
    state.registers[RBP] = machine.load(state, top, 8)
    state.registers[RSP] = machine.add(top, 8, 8)


def _add(machine: Machine, state: State, op: Op) -> None:
    target, source = op.operands
    size = target.size
    x = machine.get(state, target, size)
    value = machine.add(x, machine.get(state, source, size), size)
    machine.put(state, target, value)
    state.flags = ("result", value, 0, size)


def _subtract(machine: Machine, state: State, op: Op) -> None:
    target, source = op.operands
    size = target.size
    x, y = machine.get(state, target, size), machine.get(state, source, size)
    machine.put(state, target, machine.difference(x, y, size))
    state.flags = ("sub", x, y, size)


def _compare(machine: Machine, state: State, op: Op) -> None:
    x, y = op.operands
    size = x.size or y.size
    state.flags = ("sub", machine.get(state, x, size), machine.get(state, y, size), size)


def _test(machine: Machine, state: State, op: Op) -> None:
    x, y = op.operands
    size = x.size or y.size
    state.flags = ("and", machine.get(state, x, size), machine.get(state, y, size), size)


def _logic(name: str, function: Callable[[int, int], int]) -> Handler:
    def handler(machine: Machine, state: State, op: Op) -> None:
        target, source = op.operands
        size = target.size
        value: Value
        if name == "xor" and target == source:
            value = 0
        else:
            x, y = machine.get(state, target, size), machine.get(state, source, size)
            if isinstance(x, int) and isinstance(y, int):
                value = function(x, y) & MASK[size]
            elif name != "xor" and x == y:
                value = x
            elif name == "and" and 0 in (x, y):
                value = 0
            elif name == "or" and MASK[size] in (x, y):
                value = MASK[size]
            elif name != "and" and 0 in (x, y):
                value = y if x == 0 else x
            else:
                value = _combined(machine, name, x, y, size)
                few = [function(one, other) for one in _few(state, x) for other in _few(state, y)]
                if not isinstance(value, int):
                    _know_few(state, value, few)
        machine.put(state, target, value)
        state.flags = ("and", value, value, size)

    return handler


def _combined(machine: Machine, name: str, x: Value, y: Value, size: int) -> Value:
    """Bit by bit, at least one of them unknown."""
    if name == "and":
        return machine.bits.both(x, y, size)
    return machine.bits.either(x, y, size) if name == "or" else machine.derived(size, name, x, y, size)


def _few(state: State, value: Value) -> list[int]:
    """The numbers that a value can be, where these are a few; else none."""
    if isinstance(value, int):
        return [value]
    ranges = state.known.get(value, ())
    return [low for low, _ in ranges] if len(ranges) <= MAX_FEW and all(low == high for low, high in ranges) else []


def _know_few(state: State, value: Unknown, numbers: Sequence[int]) -> None:
    """`ok ? 0 : -ENOMEM` is compiled to a mask of all bits or none, and an `and`."""
    if numbers:
        ranges: Ranges = ()
        for number in numbers:
            ranges = union(ranges, ((number & MASK[value[2]],) * 2,))
        state.know(value, intersection(state.ranges(value), ranges))


def _step_by(number: int) -> Handler:
    def handler(machine: Machine, state: State, op: Op) -> None:
        (target,) = op.operands
        size = target.size
        value = machine.add(machine.get(state, target, size), number & MASK[size], size)
        machine.put(state, target, value)
        state.flags = ("result", value, 0, size)

    return handler


def _shift(name: str, function: Callable[[int, int, int], int]) -> Handler:
    def handler(machine: Machine, state: State, op: Op) -> None:
        target = op.operands[0]
        size = target.size
        x = machine.get(state, target, size)
        count = machine.get(state, op.operands[1], 1) if len(op.operands) > 1 else 1
        if isinstance(count, int):
            count &= 63 if size == 8 else 31
        value: Value
        if isinstance(x, int) and isinstance(count, int):
            value = function(x, count, size) & MASK[size]
        elif name == "sar" and count == 8 * size - 1 and (sign := _sign(machine, state, x, size)) is not None:
            value = MASK[size] if sign else 0
        elif name == "shr" and isinstance(count, int):
            value = machine.bits.shifted_right(x, count, size)
        else:
            value = machine.derived(size, name, x, count, size)
        machine.put(state, target, value)
        # A shift by nothing leaves the flags as they were.
        if count != 0:
            state.flags = ("result", value, 0, size) if isinstance(count, int) else None

    return handler


def _sign(machine: Machine, state: State, value: Value, size: int) -> bool | None:
    """Whether a value is negative, where that is known."""
    ranges = ((value, value),) if isinstance(value, int) else machine.ranges(state, value)
    if all(high < SIGN[size] for _, high in ranges):
        return False
    return True if all(low >= SIGN[size] for low, _ in ranges) else None


def _arithmetic_right(x: int, count: int, size: int) -> int:
    return (x - (1 << 8 * size) if x & SIGN[size] else x) >> count


def _unary(name: str, function: Callable[[int], int]) -> Handler:
    def handler(machine: Machine, state: State, op: Op) -> None:
        (target,) = op.operands
        size = target.size
        x = machine.get(state, target, size)
        value: Value
        if isinstance(x, int):
            value = function(x) & MASK[size]
        else:
            value = machine.derived(size, name, x, size)
            _know_few(state, value, list(map(function, _few(state, x))))
        machine.put(state, target, value)
        if name == "negate":
            state.flags = ("result", value, 0, size)

    return handler


def _set(machine: Machine, state: State, op: Op) -> None:
    holds, fails, about = machine.decide(state, op.condition)
    value: Value
    if not holds or not fails:
        value = int(bool(holds))
    else:
        value = machine.derived(1, "set", op.condition, state.flags) if about else machine.unknown(1, "set")
        state.know(value, _FLAG)
    machine.put(state, op.operands[0], value)


def _move_if(machine: Machine, state: State, op: Op) -> None:
    target, source = op.operands
    holds, fails, about = machine.decide(state, op.condition)
    x, y = machine.get(state, target, target.size), machine.get(state, source, target.size)
    if not fails:
        machine.put(state, target, y)
    elif not holds or x == y:
        machine.put(state, target, x)
    else:
        value = machine.symbols.either(x, y, target.size)
        # It stays where the condition fails, which may say something of it; likewise what it becomes.
        stays = fails if about == x else state.ranges(x)
        ranges = union(stays, holds if about == y else state.ranges(y))
        if ranges != EVERYTHING[target.size]:
            state.know(value, ranges)
        machine.put(state, target, value)


def _subtract_borrow(machine: Machine, state: State, op: Op) -> None:
    target, source = op.operands
    holds, fails, _ = machine.decide(state, "b")
    if not holds or not fails:
        machine.chosen(state, op, bool(holds))
        return
    value = machine.unknown(target.size, "borrow")
    if target == source:
        state.know(value, ((0, 0), (MASK[target.size],) * 2))
    machine.put(state, target, value)
    state.flags = None


def _environment(*outputs: int) -> Handler:
    """Reads what the machine says: a register of its own, its clock."""

    def handler(machine: Machine, state: State, _op: Op) -> None:
        for number in outputs:
            state.registers[number] = machine.unknown(4, "environment")

    return handler


def _leave_for_others(machine: Machine, state: State, _op: Op) -> None:
    """The hypervisor, or a guest, does what it likes with registers and what they point to."""
    machine.forget_behind(state)
    for number in range(16):
        if number not in (RSP, *PRESERVED):
            state.registers[number] = machine.unknown(8, "environment")
    state.flags = None


def _bit_test(machine: Machine, state: State, op: Op) -> None:
    target, number = op.operands
    size = target.size
    bit = machine.get(state, number, 1)
    state.flags = None
    if isinstance(bit, int) and (target.kind == REGISTER or bit < 8 * size):
        state.flags = ("bit", machine.get(state, target, size), 1 << bit % (8 * size), size)


def _bit_change(name: str, change: Callable[[int, int], int]) -> Handler:
    def handler(machine: Machine, state: State, op: Op) -> None:
        target, number = op.operands
        size = target.size
        bit = machine.get(state, number, 1)
        if not isinstance(bit, int) or (target.kind != REGISTER and bit >= 8 * size):
            machine.clobber(state, op)
            return
        old, mask = machine.get(state, target, size), 1 << bit % (8 * size)
        other = mask if name != "and" else MASK[size] - mask
        value = change(old, other) if isinstance(old, int) else machine.derived(size, name, old, other, size)
        machine.put(state, target, value)
        state.flags = ("bit", old, mask, size)

    return handler


def _multiply(machine: Machine, state: State, op: Op) -> None:
    if len(op.operands) < 2:
        machine.clobber(state, op)
        return
    size = op.operands[0].size
    x, y = (machine.get(state, operand, size) for operand in op.operands[-2:])
    value: Value
    if isinstance(x, int) and isinstance(y, int):
        value = (x * y) & MASK[size]
    else:
        value = machine.derived(size, "multiply", x, y, size)
    machine.put(state, op.operands[0], value)
    state.flags = None


def _multiply_wide(machine: Machine, state: State, op: Op) -> None:
    """`mul`: the product is twice as wide as what it is of."""
    (source,) = op.operands
    size = source.size
    if size < 4:
        machine.clobber(state, op)
        return
    x, y = machine.part(machine.register(state, RAX), size), machine.get(state, source, size)
    if isinstance(x, int) and isinstance(y, int):
        state.registers[RAX], state.registers[RDX] = (x * y) & MASK[size], (x * y) >> 8 * size
    else:
        state.registers[RAX] = machine.derived(size, "multiply", x, y, size)
        state.registers[RDX] = machine.derived(size, "multiply-high", x, y, size)
    state.flags = None


def _shift_right_double(machine: Machine, state: State, op: Op) -> None:
    """`shrd`: what is shifted out of the second comes into the first."""
    target, source, given = op.operands
    size = target.size
    x, y, count = machine.get(state, target, size), machine.get(state, source, size), machine.get(state, given, 1)
    value: Value
    if isinstance(x, int) and isinstance(y, int) and isinstance(count, int):
        value = ((y << 8 * size | x) >> count % (64 if size == 8 else 32)) & MASK[size]
    else:
        value = machine.derived(size, "shift-double", x, y, count, size)
    machine.put(state, target, value)
    state.flags = None


def _rotate(machine: Machine, state: State, op: Op) -> None:
    target, source = op.operands[0], op.operands[-1]
    size = target.size
    x, count = machine.get(state, target, size), machine.get(state, source, 1)
    if len(op.operands) < 2 or not isinstance(count, int):
        machine.clobber(state, op)
        return
    left = count % (8 * size) if op.mnemonic == Mnemonic.ROL else -count % (8 * size)
    value = rotated(x, left, size) if isinstance(x, int) else machine.derived(size, "rotate", x, left, size)
    machine.put(state, target, value)
    state.flags = None


def _nothing(_machine: Machine, _state: State, _op: Op) -> None:
    pass


def _string(machine: Machine, state: State, op: Op) -> None:
    """`rep stos` and `rep movs`: step by step where it is known how often and where to."""
    size, moves = _STRINGS[op.mnemonic]
    count = machine.register(state, RCX) if op.raw.has_rep_prefix else 1
    target, source = machine.register(state, RDI), machine.register(state, RSI)
    if not isinstance(count, int) or count > MAX_REPEAT or not isinstance(target, int):
        if isinstance(target, int):
            machine.forget_from(state, target)
        else:
            machine.forget_reached(state, target)
        for number in (RCX, RDI, *([RSI] if moves else [])):
            state.registers[number] = None
        return
    length, done = count * size, 0
    given = machine.part(machine.register(state, RAX), size)
    # In pieces as large as they can be: a page cleared by `rep stosb` is not 4096 entries for all states to come.
    together = (not isinstance(source, int) or abs(source - target) >= length) if moves else isinstance(given, int)
    while done < length:
        piece = next(piece for piece in (WORD, 4, 2, 1) if piece <= length - done) if together else size
        if moves:
            value = machine.load(state, machine.add(source, done, 8), piece)
        else:
            value = given * (MASK[piece] // MASK[size]) if isinstance(given, int) else given
        machine.store(state, target + done, piece, value)
        machine.repeated += 1
        done += piece
    state.registers[RDI] = target + length
    if moves:
        state.registers[RSI] = machine.add(source, length, 8)
    if op.raw.has_rep_prefix:
        state.registers[RCX] = 0


def _exchange(machine: Machine, state: State, op: Op) -> None:
    a, b = op.operands
    x, y = machine.get(state, a, a.size), machine.get(state, b, b.size)
    machine.put(state, a, y)
    machine.put(state, b, x)


_STRINGS: dict[int, tuple[int, bool]] = {
    Mnemonic.STOSB: (1, False),
    Mnemonic.STOSD: (4, False),
    Mnemonic.STOSQ: (8, False),
    Mnemonic.MOVSB: (1, True),
    Mnemonic.MOVSD: (4, True),
    Mnemonic.MOVSQ: (8, True),
}

_HANDLERS: dict[int, Handler] = {
    Mnemonic.MOV: _move,
    Mnemonic.MOVZX: _extend_zero,
    Mnemonic.MOVSX: _extend_sign,
    Mnemonic.MOVSXD: _extend_sign,
    Mnemonic.CDQE: _extend_accumulator(8, 4),
    Mnemonic.CWDE: _extend_accumulator(4, 2),
    Mnemonic.LEA: _load_address,
    Mnemonic.PUSH: _push,
    Mnemonic.POP: _pop,
    Mnemonic.LEAVE: _leave,
    Mnemonic.PUSHFQ: _push_flags,
    Mnemonic.POPFQ: _pop_flags,
    Mnemonic.ADD: _add,
    Mnemonic.SUB: _subtract,
    Mnemonic.CMP: _compare,
    Mnemonic.TEST: _test,
    Mnemonic.AND: _logic("and", operator.and_),
    Mnemonic.OR: _logic("or", operator.or_),
    Mnemonic.XOR: _logic("xor", operator.xor),
    Mnemonic.INC: _step_by(1),
    Mnemonic.DEC: _step_by(-1),
    Mnemonic.SHL: _shift("shl", lambda x, count, _: x << count),
    Mnemonic.SHR: _shift("shr", lambda x, count, _: x >> count),
    Mnemonic.SAR: _shift("sar", _arithmetic_right),
    Mnemonic.NOT: _unary("not", operator.invert),
    Mnemonic.NEG: _unary("negate", operator.neg),
    Mnemonic.SBB: _subtract_borrow,
    Mnemonic.XCHG: _exchange,
    Mnemonic.BT: _bit_test,
    Mnemonic.BTS: _bit_change("or", operator.or_),
    Mnemonic.BTR: _bit_change("and", operator.and_),
    Mnemonic.BTC: _bit_change("xor", operator.xor),
    Mnemonic.IMUL: _multiply,
    Mnemonic.MUL: _multiply_wide,
    Mnemonic.SHRD: _shift_right_double,
    Mnemonic.ROL: _rotate,
    Mnemonic.ROR: _rotate,
    Mnemonic.RDMSR: _environment(RAX, RDX),
    Mnemonic.RDTSC: _environment(RAX, RDX),
    Mnemonic.XGETBV: _environment(RAX, RDX),
    Mnemonic.CPUID: _environment(RAX, RBX, RCX, RDX),
    **dict.fromkeys(
        (
            *(Mnemonic.NOP, Mnemonic.ENDBR64, Mnemonic.PAUSE, Mnemonic.CLI, Mnemonic.STI, Mnemonic.LFENCE),
            *(Mnemonic.MFENCE, Mnemonic.SFENCE, Mnemonic.WRMSR, Mnemonic.CLAC, Mnemonic.STAC, Mnemonic.PREFETCHT0),
        ),
        _nothing,
    ),
    **dict.fromkeys((Mnemonic.VMCALL, Mnemonic.VMMCALL, Mnemonic.VMRUN, Mnemonic.SYSCALL), _leave_for_others),
    **dict.fromkeys(_STRINGS, _string),
    **{number: _set for name, number in vars(Mnemonic).items() if name.startswith("SET") and name != "SETSSBSY"},
    **{number: _move_if for name, number in vars(Mnemonic).items() if name.startswith("CMOV")},
}
