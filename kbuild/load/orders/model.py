"""What the module loader and KVM do with a request, by their sources: the errno, and what is loaded afterwards.

Small on purpose: it knows that modules are there or not, that one needs another, and that one of the two vendor modules
is not for this CPU. What it says is what generated orders expect; each rule names the code that it was read in.
"""

from __future__ import annotations

import dataclasses

from kbuild.load.orders.conditions import Facts, NoneHolds, choose
from kbuild.load.orders.format import (
    SUCCESS,
    VENDOR_MODULES,
    Expectation,
    ExpectedLog,
    FailingLoad,
    Step,
    When,
    kernel_name,
)

ALREADY_THERE = Expectation(
    errno="EEXIST",
    why="kernel/module/main.c, add_unformed_module(): a live module of that name is there, so init is not run again",
)
NOT_THERE = Expectation(errno="ENOENT", why="kernel/module/main.c, delete_module(): there is no module of that name")
IN_USE = Expectation(
    errno="EWOULDBLOCK", why="kernel/module/main.c, delete_module(): other modules depend on it, and have to go first"
)
IDLE = (ALREADY_THERE, NOT_THERE)
"""No code of the module runs, and nothing changes."""

_BEFORE_6_3 = "cpu_has_kvm_support"
"""Until 6.2 the common part asks the vendor module about the CPU, through this function of it."""
ANOTHER_VENDOR_IS_THERE = Expectation(
    when=When(has_symbol=_BEFORE_6_3),
    errno="EEXIST",
    log=ExpectedLog(must=("vendor-already-loaded",)),
    why="arch/x86/kvm/x86.c, kvm_x86_vendor_init(): looks for a loaded vendor first, before it looks at the CPU",
)
OTHER_VENDOR = (
    Expectation(
        when=When(has_symbol=_BEFORE_6_3, cpu="amd"),
        errno="EOPNOTSUPP",
        log=ExpectedLog(may=("vendor-not-supported",)),  # rate-limited
        why="arch/x86/kvm/vmx/vmx.c, cpu_has_kvm_support(): there is no VMX in CPUID",
    ),
    Expectation(
        when=When(has_symbol=_BEFORE_6_3, cpu="intel"),
        errno="EOPNOTSUPP",
        log=ExpectedLog(may=("vendor-not-supported", "vendor-not-supported-detail")),
        why="arch/x86/kvm/svm/svm.c, has_svm(): the CPU is not AMD's",
    ),
    Expectation(
        when=When(cpu="amd"),
        errno="EOPNOTSUPP",
        log=ExpectedLog(must=("vendor-not-supported",)),
        why="arch/x86/kvm/vmx/vmx.c, vmx_init(): asks kvm_is_vmx_supported() before kvm_x86_vendor_init()",
    ),
    Expectation(
        when=When(cpu="intel"),
        errno="EOPNOTSUPP",
        log=ExpectedLog(must=("vendor-not-supported",)),
        why="arch/x86/kvm/svm/svm.c, svm_init(): asks kvm_is_svm_supported() before kvm_x86_vendor_init()",
    ),
)


@dataclasses.dataclass(frozen=True)
class World:
    """What is loaded on a host. A request gives what is to be expected of it, and the world afterwards."""

    facts: Facts
    live: frozenset[str] = frozenset()
    """By the kernel's names."""

    @property
    def vendor(self) -> str:
        """The host's own vendor module."""
        return kernel_name(VENDOR_MODULES[self.facts.cpu])

    def load(self, module: str) -> tuple[Expectation, World]:
        """Load a module, and before it what it needs."""
        ready = self._with_needed(module)
        if module in self.live:
            return ALREADY_THERE, self
        if module in map(kernel_name, VENDOR_MODULES.values()) and module != self.vendor:
            rules = (*([ANOTHER_VENDOR_IS_THERE] if self.vendor in self.live else []), *OTHER_VENDOR)
            chosen = choose(Step(load=module, expect=rules), self.facts)
            assert not isinstance(chosen, NoneHolds)
            return chosen, ready
        return SUCCESS, World(self.facts, ready.live | {module})

    def fail(self, way: FailingLoad) -> tuple[Expectation, World]:
        """Load a module in a way that fails."""
        if way.module in self.live:
            return ALREADY_THERE, self
        return Expectation(errno=way.errno, log=way.log, why=way.why), self._with_needed(way.module)

    def unload(self, module: str) -> tuple[Expectation, World]:
        """Unload a module."""
        if module not in self.live:
            return NOT_THERE, self
        if any(module in self.facts.depends.get(other, ()) for other in self.live):
            return IN_USE, self
        return SUCCESS, World(self.facts, self.live - {module})

    def _with_needed(self, module: str) -> World:
        live = self.live
        waiting = [module]
        while waiting:
            needed = frozenset(self.facts.depends.get(waiting.pop(), ())) - live
            live |= needed
            waiting += sorted(needed)
        return World(self.facts, live)
