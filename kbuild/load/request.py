"""What the load stage is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kbuild.dmesg.signatures import Signatures
from kbuild.elf.moduleset import ModuleSet
from kbuild.hosts.spec import HostSpec
from kbuild.load.order import Order


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
    cancelled: threading.Event = field(default_factory=threading.Event)

    @cached_property
    def symbols(self) -> frozenset[str]:
        """Every symbol that a module defines, for `has_symbol`."""
        return frozenset(
            symbol.name for image in self.modules.modules.values() for symbol in image.symbols if symbol.section
        )
