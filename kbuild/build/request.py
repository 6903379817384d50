"""What a build is asked for, and the object folder that belongs to it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.build.make import call
from kbuild.build.toolchain import Toolchain, make_environment, make_variables
from kbuild.configure.request import Request
from kbuild.configure.tree import Tree

KERNEL = ("bzImage", "modules")
"""What is built where nothing else is asked for."""


@dataclass(frozen=True)
class BuildRequest:
    """What to build. Everything that changes the output is in here or in the tree."""

    tree: Tree
    symbols: Request
    """The configuration that is asked for."""
    toolchain: Toolchain
    local_version: str
    warnings_count: Sequence[str]
    targets: tuple[str, ...] = KERNEL
    """Of make. Others than a kernel's: folders and modules of it, for what compiler and modpost say of them."""

    @property
    def whole(self) -> bool:
        """Whether it gives a kernel that can be booted."""
        return self.targets == KERNEL

    @property
    def variables(self) -> dict[str, str]:
        """Variables for make."""
        return make_variables(self.toolchain, self.local_version, self.tree.source, self.symbols.arch)

    @property
    def environment(self) -> dict[str, str]:
        """Environment for make."""
        return make_environment(self.tree.slot)

    @property
    def objects(self) -> Path:
        """The object folder: one for each configuration, toolchain and set of variables."""
        # ccache does not change the output, and may be installed between two builds.
        variables = {name: value.removeprefix("ccache ") for name, value in self.variables.items()}
        parts = [self.symbols.base, self.symbols.wanted(self.tree.version).text()]
        for values in (self.toolchain.versions, variables):
            parts += [f"{name}={value}" for name, value in sorted(values.items())]
        if not self.whole:
            parts += self.targets
        return self.tree.objects(hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12])

    @property
    def argv(self) -> list[str]:
        """The command that builds it."""
        # Of a part each error is wanted, not only the first.
        goals = self.targets if self.whole else ("-k", *self.targets)
        return call(self.tree.source, self.objects, self.variables, goals, os.cpu_count() or 1)
