"""Where code goes on at a place that the kernel may have patched: what a CPU has and how keys are set hangs together.

Modules are patched before any of their code is run (arch/x86/kernel/module.c, module_finalize()); jump labels also
later, when a key is enabled or disabled (kernel/jump_label.c).
"""

from __future__ import annotations

from kbuild.elf.code.decode import Block
from kbuild.elf.code.machine import Machine
from kbuild.elf.code.state import State
from kbuild.elf.code.tables import FEATURE_ALWAYS, Patch
from kbuild.elf.code.values import MASK, Ranges, Value, intersection

CPU_FEATURE = "cpu feature"
_KEY_BYTES = 4
"""`enabled`, the first of struct static_key (include/linux/jump_label.h): 0, or not."""


def ways(machine: Machine, state: State, block: Block) -> list[tuple[int, State]]:
    """Where it may go on at the beginning of a block, each with its own state; the last one may be the block itself.

    `state` is used up.
    """
    found: list[tuple[int, State]] = []
    for patch in reversed(block.patches):
        value, there, absent = _condition(machine, state, patch)
        ranges = state.ranges(value)
        applies, rest = intersection(ranges, there), intersection(ranges, absent)
        if applies:
            other = state.copy() if rest else state
            if not isinstance(value, int):
                other.learn(value, applies)
            found.append((patch.to, other))
        if not rest:
            return found
        if not isinstance(value, int):
            state.learn(value, rest)
    found.append((block.start, state))
    return found


def _condition(machine: Machine, state: State, patch: Patch) -> tuple[Value, Ranges, Ranges]:
    """A value, what it is where the patch is there, and what it is where not."""
    if patch.key is not None:
        value = machine.load(state, patch.key, _KEY_BYTES)
        enabled, disabled = ((1, MASK[_KEY_BYTES]),), ((0, 0),)
        return (value, enabled, disabled) if patch.when else (value, disabled, enabled)
    has, lacks = ((1, 1),), ((0, 0),)
    value = 1 if patch.feature == FEATURE_ALWAYS else machine.derived(1, CPU_FEATURE, patch.feature)
    return (value, has, lacks) if patch.when else (value, lacks, has)
