"""What a call means: where it leads, and what it leaves of a state when it is not looked into."""

from __future__ import annotations

from dataclasses import dataclass

from iced_x86 import Register

from kbuild.elf.code.decode import ARGUMENTS, R8, R9, R10, R11, RAX, RCX, RDI, RDX, RSI, register
from kbuild.elf.code.graph import INDIRECT_THUNKS
from kbuild.elf.code.link import Name, Program
from kbuild.elf.code.machine import Machine
from kbuild.elf.code.state import STACK, STACK_END, State
from kbuild.elf.code.values import Value

NO_RETURN = frozenset({"panic", "__stack_chk_fail", "fortify_panic", "__fortify_panic", "do_exit", "make_task_dead"})
NOTHING = frozenset({"__fentry__", "__cfi_slowpath", "__sanitizer_cov_trace_pc"})
COPIES = frozenset({"memcpy", "__memcpy", "memmove", "__memmove"})
STATIC_CALL_UPDATE = "__static_call_update"
TRAMPOLINE = "__SCT__"
STATIC_CALL = -1
"""In place of a symbol: the place of a static call's target, by its trampoline's address."""
MAX_COPY = 1 << 16
LOST = (RCX, RDX, RSI, RDI, R8, R9, R10, R11)
"""Registers that a function need not keep, besides its result's."""


@dataclass(frozen=True)
class Call:
    """A call that is about to happen, or has returned."""

    site: int
    """Address of the instruction."""
    target: int | None
    """None: it could not be resolved."""
    name: Name | None
    arguments: tuple[Value | None, ...]
    depth: int

    @property
    def of_kernel(self) -> bool:
        """Whether it is a function of the kernel, which is not looked into."""
        return self.name is not None and self.name.module is None


class Calls:
    """Calls of one program."""

    def __init__(self, program: Program, machine: Machine) -> None:
        self._program = program
        self._machine = machine

    def of(self, state: State, target: Value, site: int, depth: int) -> Call:
        """The call to what a target leads to, through thunks and static calls."""
        arguments = tuple(state.registers[number] for number in ARGUMENTS)
        found: Value | None = target
        for _ in range(4):
            name = self._program.name(found) if isinstance(found, int) else None
            if not isinstance(found, int) or name is None:
                break
            if name.symbol.startswith(INDIRECT_THUNKS):
                number = register(getattr(Register, name.symbol.rpartition("_")[2].upper(), Register.NONE))
                found = self._machine.register(state, number[0]) if number else None
            elif name.symbol.startswith(TRAMPOLINE):
                kept = state.memory.get((STATIC_CALL, found))
                found = kept[1] if kept is not None else None
            elif name.module is None or self._program.is_code(found):
                return Call(site, found, name, arguments, depth)
            else:
                break
        return Call(site, None, None, arguments, depth)

    def unknown(self, state: State, origin: object) -> None:
        """Some code of a module ran, and it is not known which."""
        self._machine.forget(state, *self._program.extent)
        self.after(state, origin)

    def after(self, state: State, origin: object) -> None:
        """What a call leaves of registers and of memory that it was not told of."""
        self._machine.forget_behind(state)
        for number in LOST:
            state.registers[number] = None
        state.registers[RAX] = self._machine.unknown(8, origin)
        state.flags = None

    def known(self, state: State, call: Call) -> bool:
        """Do what a function of the kernel does of which all is known. False: it is another one."""
        assert call.name is not None
        symbol = call.name.symbol
        second, third = call.arguments[1:3]
        if symbol in NOTHING:
            return True
        if symbol in COPIES:
            return self._copy(state, call.arguments)
        if symbol == STATIC_CALL_UPDATE and isinstance(second, int) and third is not None:
            state.memory[STATIC_CALL, second] = (8, third)
            return True
        return False

    def any_other(self, state: State, call: Call, top: int) -> None:
        """Do what a function of the kernel may do of which nothing is known. `top`: where the caller's stack ends."""
        assert call.name is not None
        for argument in call.arguments:
            if isinstance(argument, int):
                self._lend(state, argument, top)
        self.after(state, ("result", call.name.symbol, call.site))

    def callbacks(self, call: Call) -> list[int]:
        """Functions of modules that the kernel was given: it may run them before it returns."""
        found = dict.fromkeys(call.arguments)
        return [each for each in found if isinstance(each, int) and self._program.is_code(each)]

    def _copy(self, state: State, arguments: tuple[Value | None, ...]) -> bool:
        target, source, count = arguments[:3]
        if not isinstance(target, int) or not isinstance(source, int) or not isinstance(count, int) or count > MAX_COPY:
            return False
        done = 0
        while done < count:
            size = next(size for size in (8, 4, 2, 1) if size <= count - done)
            self._machine.store(state, target + done, size, self._machine.load(state, source + done, size))
            done += size
        state.registers[RAX] = target
        return True

    def _lend(self, state: State, address: int, top: int) -> None:
        """The kernel was given a pointer: it may write to that object."""
        if STACK_END < address <= STACK:
            self._machine.forget(state, address, top)
            return
        linked = self._program.module_at(address)
        place = linked.section_at(address) if linked is not None else None
        if place is not None and "W" in place[0].flags:
            self._machine.forget(state, address, self._program.object_end(address))
