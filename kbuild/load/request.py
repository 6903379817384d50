"""What the load stage is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kbuild.build.selftests import Programs
from kbuild.dmesg.signatures import Signatures
from kbuild.elf import contents
from kbuild.elf.contents import MalformedError
from kbuild.elf.image import module_key
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.resources.acquired import Acquired, find_acquired
from kbuild.elf.rules.spec import Resource, Rules
from kbuild.elf.text import ModuleText, module_texts
from kbuild.hosts.base import Machine
from kbuild.hosts.spec import HostSpec
from kbuild.load.orders.format import Order
from kbuild.load.trace.asked import Question, ask
from kbuild.transcript import Transcript
from kbuild.versions import parse_version


class Cancellation:
    """Ends all machines of a run, from another thread than theirs."""

    def __init__(self) -> None:
        self._machines: set[Machine] = set()
        self._lock = threading.Lock()
        self._requested = False

    def requested(self) -> bool:
        """Whether the run is to end."""
        return self._requested

    @contextmanager
    def ends(self, machine: Machine) -> Iterator[None]:
        """While the context is open, `cancel` ends this machine too."""
        with self._lock:
            self._machines.add(machine)
        if self._requested:
            machine.stop()
        try:
            yield
        finally:
            with self._lock:
                self._machines.discard(machine)

    def cancel(self) -> None:
        """End all machines, and those that are started from now on at once."""
        self._requested = True
        with self._lock:
            machines = [*self._machines]
        for machine in machines:
            machine.stop()


@dataclass(frozen=True, kw_only=True)
class LoadRequest:
    """Orders to run with one kernel and its modules, on some hosts."""

    kernel: Path
    """A bzImage."""
    release: str
    """Of the kernel, as its agent should report it: `6.1.192-kbuild`."""
    modules: ModuleSet
    orders: tuple[Order, ...]
    hosts: tuple[HostSpec, ...]
    command_line: tuple[str, ...]
    signatures: Signatures
    agent: Path
    """The agent's program."""
    run: str
    """The run's id, kept with what hosts have been seen to do."""
    folder: Path
    """For each boot a folder `HOST/boot-N` with console, agent's line and command."""
    again: Callable[[str, str], str]
    """From a host's and an order's id: the command that runs that order there again."""
    keep: Callable[[Transcript], None] = lambda _: None
    """Told of each order that came to its end, by the threads of all hosts."""
    only: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Of an order's id to globs of those of its runs that are asked for; none: all."""
    rules: Rules = field(default_factory=Rules)
    """That traces are held against."""
    resources: tuple[Resource, ...] = ()
    """What init acquires: to say whose something is that was left behind."""
    selftests: Programs = field(default_factory=Programs)
    """KVM's own, as far as orders ask for them."""
    cancellation: Cancellation = field(default_factory=Cancellation)
    known: Callable[[Transcript], Transcript] = lambda transcript: transcript
    """Marks what is known in a transcript that is told while others go on. Called in several threads."""

    @cached_property
    def traced(self) -> bool:
        """Whether modules call the tracer: those of a kernel all do, or none."""
        return any("ftrace" in image.traits for image in self.modules.modules.values())

    @cached_property
    def smp(self) -> bool:
        """Whether the kernel can have more than one CPU; one that does not say so has one."""
        return self.modules.kernel is not None and self.modules.kernel.smp

    @cached_property
    def suspends(self) -> bool:
        """Whether the kernel has SUSPEND: it exports pm_suspend() then (kernel/power/suspend.c). Unknown: it may."""
        kernel = self.modules.kernel
        return kernel is None or kernel.exports is None or "pm_suspend" in kernel.exports

    @property
    def question(self) -> Question:
        """What the rules want to see in a trace. Raises MalformedError for a damaged module."""
        with self._lock:  # the threads of several hosts ask, and the answer takes a second
            if not self._question:
                self._question.append(ask(self.modules, self.rules))
            return self._question[0]

    _question: list[Question] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def texts(self) -> list[ModuleText]:
        """The text of all modules, to tell by the bytes in memory in which function the kernel is.

        A module whose tables are broken has none: it is never blamed for a hang.
        """
        found: list[ModuleText] = []
        for image in self.modules.modules.values():
            with suppress(MalformedError):
                data = contents.decompressed(contents.read(image.path))
                found += module_texts(data, module_key(image.kernel_name))
        return found

    @cached_property
    def acquired(self) -> list[Acquired]:
        """What the modules' inits acquire by names. Takes seconds: only asked where something was left behind.

        Raises UserError for modules whose code cannot be followed.
        """
        with self._lock:
            return find_acquired(self.modules, self.resources)

    @cached_property
    def kind(self) -> str:
        """What hosts are known to do is known for a kind of kernel: its series, and whether it is PREEMPT_RT.

        KVM asks more of a CPU there (arch/x86/kvm/x86.c, kvm_x86_vendor_init()), which TCG does not have.
        """
        series = ".".join(map(str, parse_version(self.release)[:2]))
        return f"{series}-rt" if self.modules.kernel and self.modules.kernel.realtime else series

    @property
    def built(self) -> str:
        """The same, and how it was configured, as far as its release says so: `6.1-kbuild`, `6.1-amd64`."""
        words = (word for word in self.release.split("-")[1:] if word[:1].isalpha())
        return "-".join(dict.fromkeys([*self.kind.split("-"), *words]))

    @cached_property
    def symbols(self) -> frozenset[str]:
        """Every symbol that a module defines, for `has_symbol`."""
        return frozenset(
            symbol.name for image in self.modules.modules.values() for symbol in image.symbols if symbol.section
        )

    @cached_property
    def depends(self) -> dict[str, frozenset[str]]:
        """The modules of the set that each one needs, by the kernel's names."""
        modules = self.modules
        return {key: frozenset(map(module_key, modules.dependencies(image))) for key, image in modules.modules.items()}

    @cached_property
    def parameters(self) -> dict[str, frozenset[str]]:
        """The parameters of each module, by its kernel's name, for `has_parameter`: names with `_`.

        `__param` is the table that the kernel looks through (include/linux/moduleparam.h, __module_param_call()); not
        all that is in it is in `.modinfo` too.
        """
        found: dict[str, frozenset[str]] = {}
        for key, image in self.modules.modules.items():
            table = {section.index for section in image.sections if section.name == "__param"}
            names = (symbol.name for symbol in image.symbols if symbol.section in table)
            found[key] = frozenset(name.removeprefix("__param_") for name in names if name.startswith("__param_"))
        return found
