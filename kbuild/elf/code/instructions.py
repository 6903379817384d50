"""What each instruction does to a state. One that is not here makes unknown what it writes, and nothing else.

Intel SDM, volume 2.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from iced_x86 import Mnemonic

from kbuild.elf.code.decode import (
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
)
from kbuild.elf.code.state import WORD, State
from kbuild.elf.code.values import (
    EVERYTHING,
    FLAG,
    MASK,
    SIGN,
    Ranges,
    Unknown,
    Value,
    intersection,
    rotated,
    truncated,
    union,
)

if TYPE_CHECKING:
    from kbuild.elf.code.machine import Machine

Handler = Callable[["Machine", State, Op], None]
MAX_FEW = 4
"""Numbers that are looked at one by one."""
MAX_REPEAT = 4096
"""Times that a string instruction is followed step by step."""


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


def _move_number(machine: Machine, state: State, op: Op) -> None:  # noqa: ARG001
    target, source = op.operands
    state.registers[target.number] = source.number & MASK[target.size]


def _move_register(machine: Machine, state: State, op: Op) -> None:
    target, source = op.operands
    value = state.registers[source.number]
    state.registers[target.number] = value if value is not None else machine.register(state, source.number)


def _load(machine: Machine, state: State, op: Op) -> None:
    target, source = op.operands
    state.registers[target.number] = machine.load(state, machine.offset(state, source), source.size)


def _store(machine: Machine, state: State, op: Op) -> None:
    target, source = op.operands
    size = target.size
    value = machine.get(state, source, size) if source.kind == REGISTER else source.number & MASK[size]
    machine.store(state, machine.offset(state, target), size, value)


def _clear(machine: Machine, state: State, op: Op) -> None:  # noqa: ARG001
    state.registers[op.operands[0].number] = 0
    state.flags = ("and", 0, 0, op.operands[0].size)


def _pop_register(machine: Machine, state: State, op: Op) -> None:
    top = machine.register(state, RSP)
    value = machine.load(state, top, 8)
    state.registers[RSP] = top + 8 if isinstance(top, int) else machine.add(top, 8, 8)
    state.registers[op.operands[0].number] = value


def _clobber(machine: Machine, state: State, op: Op) -> None:
    machine.clobber(state, op)


def prepare(op: Op) -> Handler:
    """What does an instruction to a state; it is kept with it."""
    op.do = found = _frequent(op) or HANDLERS.get(op.mnemonic, _clobber)
    return found


def _frequent(op: Op) -> Handler | None:
    """The same for what half of all code is: registers set as a whole, and plain moves from and to memory."""
    if not op.operands:
        return None
    target, source = op.operands[0], op.operands[-1]
    sets = target.kind == REGISTER and target.size >= 4
    if op.mnemonic == Mnemonic.MOV:
        if sets and source.kind == NUMBER:
            return _move_number
        if sets and source.kind == REGISTER and target.size == source.size == WORD:
            return _move_register
        if sets and source.kind == MEMORY and source.size == target.size and not source.segment:
            return _load
        if target.kind == MEMORY and source.kind in (REGISTER, NUMBER) and not target.segment and target.size in MASK:
            return _store
    elif op.mnemonic == Mnemonic.XOR and sets and target == source:
        return _clear
    elif op.mnemonic == Mnemonic.POP and sets and target.size == WORD:
        return _pop_register
    return None


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
    y = machine.get(state, source, size)
    value = machine.add(machine.get(state, target, size), y, size)
    machine.put(state, target, value)
    state.flags = ("sum", value, y, size)


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
    return machine.bits.either(x, y, size) if name == "or" else machine.bits.differ(x, y, size)


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
            state.flags = ("sub", 0, x, size)  # it subtracts from 0, and says of that what SUB would

    return handler


def _set(machine: Machine, state: State, op: Op) -> None:
    holds, fails, about = machine.decide(state, op.condition)
    value: Value
    if not holds or not fails:
        value = int(bool(holds))
    else:
        value = machine.derived(1, "set", op.condition, state.flags) if about else machine.unknown(1, "set")
        state.know(value, FLAG)
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


def _bit_scan(name: str, index: Callable[[int], int]) -> Handler:
    def handler(machine: Machine, state: State, op: Op) -> None:
        target, source = op.operands
        size = target.size
        x, before = machine.get(state, source, size), machine.get(state, target, size)
        value: Value
        if isinstance(x, int):
            value = index(x) if x else before  # so both vendors do it, and the kernel's fls64() counts on that
        else:
            value = machine.derived(size, name, x, before, size)
            if isinstance(before, int):
                state.know(value, union(((0, 8 * size - 1),), ((before, before),)))
        machine.put(state, target, value)
        state.flags = ("and", x, x, size)

    return handler


def _read_from_guest(machine: Machine, state: State, op: Op) -> None:
    """VMREAD: what the CPU keeps of a guest; how it went is in the flags."""
    machine.put(state, op.operands[0], machine.unknown(op.operands[0].size or 8, "environment"))
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


def _bit_place(machine: Machine, state: State, op: Op) -> tuple[Value | None, int | None]:
    """Of a bit in memory the address of its word, and the bit there; None: not known. Of one in a register, the bit.

    A number in a register leads out of the word, in either direction; one in the instruction does not.
    """
    target, number = op.operands
    width = 8 * target.size
    bit = machine.get(state, number, number.size or 1)
    if target.kind == REGISTER or number.kind == NUMBER:
        return None, bit % width if isinstance(bit, int) else None
    address = machine.offset(state, target)
    if not isinstance(bit, int):
        if state.ranges(bit)[-1][1] < width:
            return address, None
        return machine.add(machine.unknown(8, "bit number"), address, 8), None
    far = bit - (1 << 8 * number.size) if bit & SIGN[number.size] else bit
    return machine.add(address, far // width * target.size & MASK[8], 8), bit % width


def _bit_test(machine: Machine, state: State, op: Op) -> None:
    target = op.operands[0]
    size = target.size
    place, bit = _bit_place(machine, state, op)
    state.flags = None
    if place is None:
        word: Value | None = machine.get(state, target, size)
    elif target.segment:
        machine.get(state, target, size)
        word = machine.unknown(size, "segment")
    else:
        word = machine.load(state, place, size)
    if bit is not None and word is not None:
        state.flags = ("bit", word, 1 << bit, size)


def _bit_change(name: str, change: Callable[[int, int], int]) -> Handler:
    def handler(machine: Machine, state: State, op: Op) -> None:
        target = op.operands[0]
        size = target.size
        place, bit = _bit_place(machine, state, op)
        if target.segment or (place is None and bit is None):
            machine.clobber(state, op)
            return
        if bit is None:
            assert place is not None
            machine.load(state, place, size)
            if isinstance(place, int):
                machine.store(state, place, size, machine.unknown(size, str(op.raw)))
            else:
                machine.forget_reached(state, place)
            state.flags = None
            return
        old, mask = machine.get(state, target, size) if place is None else machine.load(state, place, size), 1 << bit
        other = mask if name != "and" else MASK[size] - mask
        value = change(old, other) if isinstance(old, int) else machine.derived(size, name, old, other, size)
        if place is None:
            machine.put(state, target, value)
        else:
            machine.store(state, place, size, value)
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
    if not op.raw.is_string_instruction:
        machine.clobber(state, op)  # MOVSD is also what moves a number between SSE registers and memory
        return
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

HANDLERS: dict[int, Handler] = {
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
    Mnemonic.BSF: _bit_scan("lowest bit", lambda x: (x & -x).bit_length() - 1),
    Mnemonic.BSR: _bit_scan("highest bit", lambda x: x.bit_length() - 1),
    Mnemonic.IMUL: _multiply,
    Mnemonic.MUL: _multiply_wide,
    Mnemonic.SHRD: _shift_right_double,
    Mnemonic.ROL: _rotate,
    Mnemonic.ROR: _rotate,
    Mnemonic.RDMSR: _environment(RAX, RDX),
    Mnemonic.RDTSC: _environment(RAX, RDX),
    Mnemonic.XGETBV: _environment(RAX, RDX),
    Mnemonic.CPUID: _environment(RAX, RBX, RCX, RDX),
    Mnemonic.VMREAD: _read_from_guest,
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
