"""What a call means: where it leads, and what it leaves of a state when it is not looked into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from operator import itemgetter
from typing import Any

import msgspec

from kbuild.elf.code.decode import ARGUMENTS, INDIRECT_CALL, R8, R9, R10, R11, RAX, RCX, RDI, RDX, RSI, Op
from kbuild.elf.code.graph import MAX_CASES, Shapes
from kbuild.elf.code.link import Name, Program
from kbuild.elf.code.machine import KERNEL_DATA, Machine
from kbuild.elf.code.results import INDIRECT_THUNKS, thunk_register
from kbuild.elf.code.state import STACK, STACK_END, State
from kbuild.elf.code.targets import OnStack
from kbuild.elf.code.values import MASK, SIGN, Ranges, Unknown, Value, union

NOTHING = frozenset({"__fentry__", "__cfi_slowpath"})
LOOKS_ON = (
    *("__asan_load", "__asan_store", "__asan_report_", "__asan_handle_no_return", "__asan_set_shadow_"),
    *("__tsan_read", "__tsan_write", "__tsan_unaligned_", "__tsan_volatile_", "__tsan_func_"),
    *("__sanitizer_cov_", "__kasan_check_", "__kcsan_check_"),
)
"""Sanitizers' functions, by their names' beginning, that are told of accesses and write to nobody's data
(mm/kasan/generic.c, kernel/kcsan/core.c, kernel/kcov.c)."""
COPIES = frozenset(
    {f"{sanitizer}{name}" for sanitizer in ("", "__", "__asan_", "__tsan_") for name in ("memcpy", "memmove")}
)
STATIC_CALL_UPDATE = "__static_call_update"
TRAMPOLINE = "__SCT__"
PROBES = "__traceiter_"
"""Runs whatever listens to a tracepoint (include/linux/tracepoint.h): of no concern to who calls it."""
MAX_COPY = 1 << 16
MAX_CHOICES = 16
"""Values that one may be of which a function of the kernel runs it."""
GIVEN = {
    **dict.fromkeys(("smp_call_function_single", "smp_call_function_many", "smp_call_function_any"), (1, 2)),
    **dict.fromkeys(("on_each_cpu_cond_mask", "smp_call_on_cpu", "work_on_cpu"), (1, 2)),
    **dict.fromkeys(("smp_call_function", "on_each_cpu", "stop_machine", "kthread_create_on_node"), (0, 1)),
}
"""Functions of the kernel that run a function (include/linux/smp.h, workqueue.h, stop_machine.h, kthread.h): which of
their arguments is it, and which one it is given as its first. They do not look at that one themselves."""
ONCE = frozenset(
    {
        *("smp_call_function_single", "smp_call_function_any", "smp_call_on_cpu", "work_on_cpu"),
        *("kthread_create_on_node", "cpu_emergency_register_virt_callback", "set_hv_tscchange_cb"),
        *("kvm_set_posted_intr_wakeup_handler", "amd_iommu_register_ga_log_notifier"),
    }
)
"""Functions of the kernel that run what they are given once at most, or keep it for later (kernel/smp.c, workqueue.c,
kthread.c; arch/x86/kernel/reboot.c and irq.c, arch/x86/hyperv/hv_init.c, drivers/iommu/amd/iommu.c). Any other one may
do so as often as it likes: on each CPU, say."""
TAKES_BACK = frozenset({"cpu_emergency_unregister_virt_callback"})
"""Functions of the kernel that are told what they shall not run any more (arch/x86/kernel/reboot.c)."""
_NONE = (None,) * 16
LOST = (RCX, RDX, RSI, RDI, R8, R9, R10, R11)
"""Registers that a function need not keep, besides its result's."""
MAY_BE_KEPT = frozenset(LOST) - {RDX}
"""Those that a function of `pv_ops` keeps too, where its caller counts on that (PV_CALLEE_SAVE() in
arch/x86/include/asm/paravirt.h). RDX may be the upper half of a result."""
_arguments: Callable[[Sequence[Value | None]], tuple[Value | None, ...]] = itemgetter(*ARGUMENTS)


class Call(msgspec.Struct, frozen=True, gc=False):
    """A call that is about to happen, or has returned."""

    site: int
    """Address of the instruction."""
    target: int | None
    """None: it could not be resolved."""
    name: Name | None
    arguments: tuple[Value | None, ...]
    """What the registers hold that arguments are given in; None: nothing is known to be there since the last call."""
    depth: int
    candidate: bool = False
    """One of those that a static call may lead to, of which this way does not say to which."""
    given_to: Call | None = None
    """The call of the kernel that was given this function, and runs it."""
    behind: int | None = None
    """Of a call through a pointer in the kernel's own data: where the code goes on."""
    kept: tuple[Value | None, ...] = ()
    """Of each argument, what is there since before the last call: it is none perhaps, or counted on to be there."""

    @property
    def put(self) -> tuple[Value | None, ...]:
        """The arguments; None: nothing was put there since the last call."""
        pairs = zip(self.arguments, self.kept, strict=True) if self.kept else ()
        return tuple(None if one == kept else one for one, kept in pairs) or self.arguments

    @property
    def of_kernel(self) -> bool:
        """Whether it is a function of the kernel, which is not looked into."""
        return self.name is not None and self.name.module is None


class Calls:
    """Calls of one program."""

    def __init__(self, program: Program, machine: Machine, shapes: Shapes) -> None:
        self._program = program
        self._machine = machine
        self._shapes = shapes
        self.updates: dict[int, set[int | None]] = {}
        """What static calls were updated to on some way, by their trampolines; None: to something unknown."""
        self.candidates: Mapping[int, Set[int | None]] = {}
        """The same, of all runs before."""
        self.asked: set[int] = set()
        """Static calls that were met before an update of theirs."""
        self._plain: dict[int, Name] = {}
        """Functions that were met, and are no thunks and the like."""

    def of(self, state: State, target: Value, op: Op, depth: int) -> list[Call]:
        """The call to what a target leads to, through thunks and static calls; several, where it may lead to each."""
        calls = self._of(state, target, op, depth)
        if not state.kept:
            return calls
        kept = _arguments(state.kept)
        return [msgspec.structs.replace(call, kept=kept) for call in calls]

    def _of(self, state: State, target: Value, op: Op, depth: int) -> list[Call]:
        site = op.ip
        arguments = _arguments(state.registers)
        found: Value | None = target
        if isinstance(found, int) and (name := self._plain.get(found)) is not None:
            return [Call(site, found, name, arguments, depth)]
        for _ in range(4):
            name = self._program.name(found) if isinstance(found, int) else None
            if not isinstance(found, int) or name is None:
                break
            if name.symbol.startswith(INDIRECT_THUNKS):
                number = thunk_register(name.symbol)
                found = self._machine.register(state, number) if number is not None else None
            elif name.module is not None and name.symbol.startswith(TRAMPOLINE):
                updated = state.static.get(found)
                if not isinstance(updated, int):
                    return self._static(found, site, arguments, depth, updated=updated is not None)
                found = updated
            elif name.symbol.startswith(PROBES):
                return [Call(site, found, Name(None, name.symbol, 0), arguments, depth)]
            elif name.module is None or self._program.is_code(found):
                self._plain[found] = name
                return [Call(site, found, name, arguments, depth)]
            else:
                break
        slot = self._slot_of_kernel(found)
        if slot is not None:
            name = Name(None, str(self._program.kernel_name(slot)), 0)
            return [Call(site, slot, name, arguments, depth, behind=op.next if op.flow == INDIRECT_CALL else None)]
        return [Call(site, None, None, arguments, depth)]

    def _static(
        self, trampoline: int, site: int, arguments: tuple[Value | None, ...], depth: int, *, updated: bool
    ) -> list[Call]:
        """A static call that has not been updated on this way: it is as in the file, or as an earlier load left it.

        Or it has been, and ways with different updates were joined: then it is any of all.
        """
        self.asked.add(trampoline)
        candidates = self.candidates.get(trampoline, frozenset())
        if None in candidates:
            return [Call(site, None, None, arguments, depth)]
        targets = [] if updated else [trampoline]
        targets += sorted(target for target in candidates if target is not None)
        return [Call(site, target, self._program.name(target), arguments, depth, True) for target in targets]

    def _slot_of_kernel(self, target: Value | None) -> int | None:
        """The place of the pointer that a target was read from, if it is the kernel's own, as in `pv_ops`."""
        if target is None or isinstance(target, int) or target[1]:
            return None
        origin: Any = self._machine.symbols.origin[target[0]]
        if not isinstance(origin, tuple) or len(origin) not in (3, 5) or origin[0] != "memory":
            return None
        address = origin[2] if origin[1] == KERNEL_DATA else origin[1]
        return address if isinstance(address, int) and self._program.kernel_name(address) is not None else None

    def cases(self, value: Unknown, state: State) -> tuple[Unknown, dict[int, Ranges]] | None:
        """A switch: its index, and the numbers of it that lead to each target.

        The entries are in a table that cannot change, and the index has known bounds. They are addresses, or distances
        from the table in four bytes, to which its address was added.
        """
        origin: Any = self._machine.symbols.origin[value[0]]
        size, start = 8, value[1]
        if isinstance(origin, tuple) and origin[0] == "sign-extended" and origin[1][1:] == (0, 4):
            size = 4
            origin = self._machine.symbols.origin[origin[1][0]]
        elif start:
            return None
        if value[2] != 8 or not isinstance(origin, tuple) or len(origin) != 5 or origin[0] != "memory" or origin[1] < 0:
            return None
        scaled: Any = self._machine.symbols.origin[origin[1]]
        if origin[3] != size or not isinstance(scaled, tuple) or scaled[0] != "scaled" or scaled[2] != size:
            return None
        index: Unknown = scaled[1]
        ranges = state.ranges(index)
        if sum(high - low + 1 for low, high in ranges) > MAX_CASES:
            return None
        found: dict[int, Ranges] = {}
        self._machine.repeated += sum(high - low + 1 for low, high in ranges)
        for number in (number for low, high in ranges for number in range(low, high + 1)):
            entry = self._machine.unwritten(state, (origin[2] + number * size) & MASK[8], size)
            if not isinstance(entry, int):
                return None
            far = entry - (1 << 8 * size) if size < 8 and entry & SIGN[size] else entry
            target = (start + far) & MASK[8]
            found[target] = union(found.get(target, ()), ((number, number),))
        return (index, found) if found else None

    def unknown(self, state: State, origin: object) -> None:
        """Some code of a module ran, and it is not known which."""
        self._machine.forget(state, *self._program.extent)
        self.after(state, origin)

    def after(self, state: State, origin: object) -> None:
        """What a call leaves of registers and of memory that it was not told of."""
        self._machine.forget_behind(state)
        self._scratch(state)
        state.registers[RAX] = self._machine.unknown(8, origin)

    def _scratch(self, state: State) -> None:
        state.kept = ()
        state.registers[: RDX + 1] = _NONE[: RDX + 1]
        state.registers[RSI : R11 + 1] = _NONE[RSI : R11 + 1]
        state.flags = None

    def known(self, state: State, call: Call) -> bool:
        """Do what a function of the kernel does of which all is known. False: it is another one."""
        assert call.name is not None
        symbol = call.name.symbol
        second, third = call.arguments[1:3]
        if symbol in NOTHING:
            return True
        if symbol.startswith(LOOKS_ON):
            self._scratch(state)
            return True
        if symbol in COPIES:
            done = self._copy(state, call.arguments)
        elif symbol == STATIC_CALL_UPDATE and isinstance(second, int) and third is not None:
            state.update_static(second, third)
            self.updates.setdefault(second, set()).add(third if isinstance(third, int) else None)
            state.registers[RAX] = None
            done = True
        else:
            done = False
        if done:
            state.kept = ()
            for number in LOST:
                state.registers[number] = None
            state.flags = None
        return done

    def any_other(self, state: State, call: Call, caller: OnStack) -> None:
        """Do what a function of the kernel may do of which nothing is known."""
        assert call.name is not None
        function, passed_on = GIVEN.get(call.name.symbol, (None, None))
        if function is not None:
            runs = call.arguments[function]
            if not isinstance(runs, int) or not self._program.is_code(runs):
                passed_on = None  # a function of the kernel's may look at it, and write to it
        # What is written down for one of `pv_ops` to do is what it does, wherever the kernel runs.
        if call.behind is None or not self._shapes.only_computes(call.site):
            for place, argument in enumerate(call.arguments):
                if isinstance(argument, int) and place != passed_on:
                    self._lend(state, argument, caller)
                elif argument is not None and not isinstance(argument, int) and place != passed_on:
                    for span in self._machine.reach(state, argument, 1):
                        self._machine.forget(state, *span)
        kept = {}
        if call.behind is not None:
            # No compiled code reads what a call may have changed: what is read behind it was kept.
            read = self._shapes.read_behind(caller.entry, call.behind)
            kept = {number: state.registers[number] for number in MAY_BE_KEPT & read}
        self.after(state, ("result", call.name.symbol, call.site))
        for number, value in kept.items():
            state.registers[number] = value

    def given_anything(self, state: State) -> None:
        """The kernel calls a function: whatever its arguments are, they can be anything."""
        for number in ARGUMENTS:
            state.registers[number] = self._machine.unknown(8, "argument")

    def functions(self, state: State, call: Call) -> tuple[dict[int, int], bool]:
        """Functions of modules that the kernel is given with a call, and may run before it returns: each with the place
        of the argument; and whether one that is given to be run may be another one."""
        assert call.name is not None
        given: dict[int, int] = {}
        if call.name.symbol in TAKES_BACK:
            return given, False
        runs = GIVEN.get(call.name.symbol, (None,))[0]
        unsure, parts = False, self._machine.symbols.parts
        for place, argument in enumerate(call.arguments):
            if isinstance(argument, int):
                if self._program.is_code(argument):
                    given.setdefault(argument, place)
            elif argument is not None and (argument[0] in parts or argument in state.known):
                found, all_known = self._functions(state, argument)
                for function in found:
                    given.setdefault(function, place)
                unsure = unsure or (place == runs and not all_known)
            elif place == runs:
                unsure = True
        return given, unsure

    def _functions(self, state: State, value: Value) -> tuple[list[int], bool]:
        """Functions of modules that a value may be, and whether it is known what else it may be."""
        found: dict[int, None] = {}
        waiting, all_known = [value], True
        for _ in range(MAX_CHOICES):
            if not waiting:
                break
            one = waiting.pop()
            if isinstance(one, int):
                if self._program.is_code(one):
                    found[one] = None
                continue
            ranges = state.ranges(one)
            either = self._machine.symbols.parts.get(one[0]) if one[1:] == (0, 8) else None
            if ranges and len(ranges) <= MAX_CHOICES and all(low == high for low, high in ranges):
                waiting += [low for low, _ in ranges]
            elif either is not None:
                waiting += either
            else:
                all_known = False
        return [*found], all_known and not waiting

    def given(self, state: State, call: Call, function: int, place: int) -> tuple[Call, State]:
        """The call of such a function by the kernel, and the state in which it begins."""
        assert call.name is not None
        known = GIVEN.get(call.name.symbol)
        called = state.copy()
        self.given_anything(called)
        if known and known[0] == place:
            called.registers[RDI] = call.arguments[known[1]]
        given = tuple(called.registers[number] for number in ARGUMENTS)
        name = self._program.name(function)
        return Call(call.site, function, name, given, call.depth + 1, given_to=call), called

    def _copy(self, state: State, arguments: tuple[Value | None, ...]) -> bool:
        target, source, count = arguments[:3]
        if not isinstance(target, int) or not isinstance(source, int) or not isinstance(count, int) or count > MAX_COPY:
            return False
        done = 0
        pieces: list[tuple[int, int, Value]] = []
        while done < count:
            size = next(size for size in (8, 4, 2, 1) if size <= count - done)
            pieces.append((done, size, self._machine.load(state, source + done, size)))
            self._machine.repeated += 1
            done += size
        # Both may overlap: nothing is written before all is read.
        for at, size, value in pieces:
            self._machine.store(state, target + at, size, value)
        state.registers[RAX] = target
        return True

    def _lend(self, state: State, address: int, caller: OnStack | None) -> None:
        """The kernel was given a pointer: it may write to that object."""
        if STACK_END < address <= STACK:
            # Of the function that has it on its stack, be it a caller's caller.
            while caller is not None and address >= caller.top:
                caller = caller.parent
            self._machine.forget(state, address, STACK if caller is None else caller.top)
            return
        place = self._program.place(address)
        if place is not None and "W" in place[1].flags:
            self._machine.forget(state, address, self._program.object_end(address))
