"""Registers and memory of a state: what is read, written, decided and forgotten when instructions are done.

Flags are kept as the operation that set them, and asked when a condition is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from iced_x86 import InstructionInfoFactory, Mnemonic, OpAccess

from kbuild.elf.code.bits import Bits
from kbuild.elf.code.decode import (
    ARGUMENTS,
    MEMORY,
    NUMBER,
    RAX,
    RDI,
    RDX,
    REGISTER,
    Op,
    Operand,
    register,
)
from kbuild.elf.code.instructions import prepare
from kbuild.elf.code.link import KERNEL, MODULES, Program
from kbuild.elf.code.parameters import Parameter
from kbuild.elf.code.state import EPOCH, NOTES, NOTES_END, STACK, STACK_END, WORD, Place, State
from kbuild.elf.code.targets import MAX_SPAN, OnStack, Span, Targets
from kbuild.elf.code.values import (
    EVERYTHING,
    FLAG,
    MASK,
    NEGATED,
    SWAPPED,
    Ranges,
    Symbols,
    Unknown,
    Value,
    holds,
    intersection,
    parted,
    truncated,
)

Access = Callable[[State, str, int, int], None]
"""Told of a read, a store, or that somebody else may have done either (`lent`), from an address to before another."""
OWN = "own "
"""Before these words: of what each CPU has for itself, of which the address tells which object it is."""
MAX_WRITTEN = 4096
"""Bytes of an instruction that does not say how many it writes: `xsave`."""
MAX_OPEN = 256
"""Objects that others may have written to; of more, all between the first and the last is one. KVM has up to 92."""
KERNEL_DATA = -2
"""In place of a symbol: the kernel's own data is like what is behind a pointer of which nothing is known."""
SETTLED = frozenset({"boot_cpu_data", "x86_hyper_type", "nr_cpu_ids", "__per_cpu_offset", "page_offset_base"})
"""Data of the kernel that stays as it is once it has booted (arch/x86/kernel/setup.c, cpu/common.c, setup_percpu.c)."""
_WRITES = frozenset({OpAccess.WRITE, OpAccess.READ_WRITE, OpAccess.COND_WRITE, OpAccess.READ_COND_WRITE})
_EXTENDED = ("zero-extended", "sign-extended")
_CLEAR, _SET = ((0, 0),), ((1, 1),)


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
        self.lasts: Callable[[Value], bool] | None = None
        """Values that are taken not to be written over by a store of which it is not known where exactly it goes."""
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
        known = state.known.get(value)
        if known is None and value[2] == 1 and (parts := self.bits.parts(value)) is not None:
            name, *both = parts
            some = [((bit, bit),) if isinstance(bit, int) else state.known.get(bit) for bit in both]
            wins, other = (_CLEAR, _SET) if name == "and" else (_SET, _CLEAR)
            known = wins if wins in some else other if some == [other, other] else None
        if not known and value[0] in self.bits.known:
            known = self.bits.ranges(value)
        return known or EVERYTHING[value[2]]

    def learn(self, state: State, value: Unknown, ranges: Ranges) -> None:
        """A branch tells what a value can be; of a bit that two words have to have in common it tells of both."""
        state.learn(value, ranges)
        if value[2] == 1 and ranges in (_CLEAR, _SET) and (parts := self.bits.parts(value)) is not None:
            name, *both = parts
            if (name == "and") == (ranges == _SET):
                for bit in both:
                    if not isinstance(bit, int):
                        state.learn(bit, ranges)

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
            base = state.registers[operand.base]
            address = self.add(base if base is not None else self.register(state, operand.base), address, 8)
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
            if not KERNEL <= address < MODULES or not self._may_change(address):
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
            value = kept[1]
            if isinstance(value, int):
                return value & MASK[size]
            return self.part(value, size) if size < value[2] else value
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
        """Whether that is data of the kernel, which may write to it whenever it is called."""
        name = self.program.kernel_name(address)
        return name is not None and name.symbol not in SETTLED

    def store(self, state: State, address: Value | None, size: int, value: Value) -> None:
        """Write there."""
        if address is None or size not in MASK:
            state.epoch = self.symbols.new(EPOCH)
            return
        if not isinstance(address, int):
            for span in self.reach(state, address, size):
                self.forget(state, *span, self.lasts)
            self._forget(state, address[1], size, address[0])
            # What other unknown pointers lead to may be the same.
            self.forget_behind(state, but=address[0])
            state.write((address[0], address[1]), size, value)
        elif KERNEL <= address < MODULES and self._may_change(address):
            self._forget(state, address, size, KERNEL_DATA)
            state.write((KERNEL_DATA, address), size, value)
            self._tell(state, "store", address, address + size)
        else:
            words = self._reached_words
            if address // WORD in words or (address + size - 1) // WORD in words or self._reached_all:
                self.forget_behind(state)
            kept = (state.stack if STACK_END < address < STACK else state.memory).get(address)
            if kept is None or kept[0] != size:
                self._forget(state, address, size)
            state.write(address, size, value)
            if self._watched[0] <= address < self._watched[1]:
                self._tell(state, "store", address, address + size)

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

    def forget(self, state: State, start: int, end: int, lasts: Callable[[Value], bool] | None = None) -> None:
        """Somebody else may have written from `start` to before `end`, but over values that last."""
        self._tell(state, "lent", start, end)
        self.repeated += min(end - start, len(state.memory)) // WORD
        written = [*state.memory, *state.stack] if end - start > len(state.memory) else range(start - WORD + 1, end)
        for place in written:
            kept = state.entry(place) if start - WORD < place < end else None
            if kept is None or place + kept[0] <= start or (lasts is not None and lasts(kept[1])):
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
        state.open = {(start, end): self.symbols.new(EPOCH), **before}

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
                self._tell(state, f"{OWN}read", at, at + size)
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
                state.registers[operand.number] = self.bits.merged(old, value, 1, 8)
            elif isinstance(old, int) and isinstance(value, int):
                state.registers[operand.number] = (old & ~MASK[size]) | value
            else:
                merged = self.bits.merged(old, value, size)
                if not isinstance(merged, int):
                    self._low[merged[0]] = (size, value)
                state.registers[operand.number] = merged
        elif operand.kind == MEMORY:
            if operand.segment and isinstance(at := self.offset(state, operand), int):
                self._tell(state, f"{OWN}store", at, at + operand.size)
            self.store(state, self.address(state, operand), operand.size, value)

    # Conditions.

    def decide(self, state: State, condition: str | None) -> tuple[Ranges, Ranges, Unknown | None]:
        """What the value that a condition is about can be where it holds, and where it does not.

        An empty one: that cannot be. Without a value: nothing can be learnt.
        """
        if condition is None or state.flags is None:
            return FLAG, FLAG, None
        kind, x, y, size = state.flags
        if kind == "bit":
            if condition not in ("b", "ae"):
                return FLAG, FLAG, None
            # The carry is the bit: set where the operand and the bit's mask have it in common.
            kind, condition = "and", "ne" if condition == "b" else "e"
        if kind == "sum":
            # There is a carry where the sum is less than what was added.
            kind, y = ("sub", y) if condition in ("b", "ae") else ("result", 0)
        if kind == "and":
            if x == y:
                y = 0
            elif isinstance(x, int) and isinstance(y, int):
                x, y = x & y, 0
            else:
                x, y = self.bits.both(x, y, size), 0
        if condition in ("s", "ns"):
            if y != 0:
                return FLAG, FLAG, None
            condition = "l" if condition == "s" else "ge"
        elif kind == "result" and condition not in ("e", "ne"):
            return FLAG, FLAG, None
        if condition not in SWAPPED:
            return FLAG, FLAG, None
        if isinstance(x, int) and not isinstance(y, int):
            x, y, condition = y, x, SWAPPED[condition]
        if y == 0 and condition in ("e", "ne") and not isinstance(x, int):
            x = self._deciding(state, x)
            size = size if isinstance(x, int) else x[2]
        if isinstance(y, int):
            if isinstance(x, int):
                return (FLAG, (), None) if holds(condition, x, y, size) else ((), FLAG, None)
            return *parted(self.ranges(state, x), condition, y, size), x
        if x == y:
            true = condition in ("e", "ae", "be", "ge", "le")
            return (FLAG if true else ()), (() if true else FLAG), None
        # Two unknowns: what the comparison says is an unknown too, the same one each time.
        positive = condition in ("e", "b", "l", "be", "le")
        truth = self.derived(1, "compare", x, y, condition if positive else NEGATED[condition], size)
        ranges = intersection(state.ranges(truth), FLAG)
        true_ranges, false_ranges = intersection(ranges, ((1, 1),)), intersection(ranges, ((0, 0),))
        return (true_ranges, false_ranges, truth) if positive else (false_ranges, true_ranges, truth)

    def _deciding(self, state: State, value: Unknown) -> Value:
        """What is 0 where that value is: the value, or the one bit of it of which it is not known."""
        if value[0] not in self.bits.known:
            return value
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
        (op.do or prepare(op))(self, state, op)

    def clobber(self, state: State, op: Op) -> None:
        """An instruction that is not modelled: whatever it writes is unknown."""
        info = self._info.info(op.raw)
        for used in info.used_registers():
            if used.access in _WRITES and (found := register(used.register)) is not None:
                # An argument has been put there, if unknown: None would say that there is none.
                state.registers[found[0]] = self.unknown(8, str(op.raw)) if found[0] in ARGUMENTS else None
        for operand in op.operands:
            if operand.kind == MEMORY and isinstance(address := self.offset(state, operand), int):
                self._tell(state, f"{OWN if operand.segment else ''}read", address, address + max(operand.size, 1))
        if any(used.access in _WRITES for used in info.used_memory()):
            self._clobber_memory(state, op)
        if op.raw.rflags_modified:
            state.flags = None

    def _clobber_memory(self, state: State, op: Op) -> None:
        target = next((operand for operand in op.operands if operand.kind == MEMORY), None)
        address = self.address(state, target) if target is not None else self.register(state, RDI)
        if address is None:
            assert target is not None
            if isinstance(at := self.offset(state, target), int):
                self._tell(state, f"{OWN}store", at, at + max(target.size, 1))
            state.epoch = self.symbols.new(EPOCH)
            return
        if target is not None and target.size in MASK:
            self.store(state, address, target.size, self.unknown(target.size, str(op.raw)))
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
        state.epoch = self.symbols.new(EPOCH)
        if state.behind:
            state.forget_behind(but)
