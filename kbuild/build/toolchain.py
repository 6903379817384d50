"""The compiler and linker that build the kernel, and their identity."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kbuild import command
from kbuild.configure.kconfig import NOT_THE_USERS
from kbuild.errors import HarnessError

DEVNULL = Path(os.devnull)
TIMESTAMP = "Thu Jan  1 00:00:00 UTC 1970"
"""KBUILD_BUILD_TIMESTAMP of every build: a time would make equal builds differ."""


@dataclass(frozen=True)
class Toolchain:
    """Programs by Kbuild's variable, and what they say of themselves."""

    variables: Mapping[str, str]
    """Make variables, such as `CC=ccache gcc`."""
    versions: Mapping[str, str]
    """Program to the first line of its `--version`. ccache is no part of it: it does not change the output."""

    @property
    def compiler(self) -> str:
        """What the compiler says of itself."""
        return self.versions[self.variables["CC"].rpartition(" ")[2]]


def find_toolchain(compiler: str = "gcc") -> Toolchain:
    """A compiler and the binutils of this system, through ccache where it is installed.

    `clang` compiles the kernel's own code; what runs on this system while it is built, and what links, stay gcc's and
    binutils'. Raises HarnessError when one is missing, and where /dev/null holds something.
    """
    # Kbuild compiles it to learn what the compiler can do: options would be lost without a word.
    if not DEVNULL.is_char_device():
        raise HarnessError(
            f"{DEVNULL} is no device: somebody has written a file over it; rm it, and mknod -m 666 {DEVNULL} c 1 3"
        )
    program = compiler if compiler == "gcc" else _newest(compiler)
    programs = dict.fromkeys((program, "gcc", "ld", "make"))
    versions = {name: command.run([name, "--version"]).output.splitlines()[0] for name in programs}
    launcher = "ccache " if shutil.which("ccache") else ""
    return Toolchain({"CC": f"{launcher}{program}", "HOSTCC": f"{launcher}gcc"}, versions)


def _newest(name: str) -> str:
    """A program as it is, or the newest of those that Debian names `NAME-VERSION`."""
    if shutil.which(name):
        return name
    folders = [Path(folder) for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)]
    versions = {
        int(match[1])
        for folder in folders
        for path in folder.glob(f"{name}-*")
        if (match := re.fullmatch(rf"{name}-(\d+)", path.name))
    }
    if not versions:
        raise HarnessError(f"{name} is not installed: scripts/inv installs what 'inv bar' needs")
    return f"{name}-{max(versions)}"


def make_variables(
    toolchain: Toolchain, local_version: str, source: Path | str, arch: str = "x86_64"
) -> dict[str, str]:
    """Variables that every call of make gets, so that equal trees give equal bytes. `source` is the tree's folder.

    `__FILE__`, which a BUG() or WARN() names, must not depend on where the tree lies nor on ccache. Kbuild
    takes the tree's folder off its beginning. But ccache makes paths relative and normal before the compiler sees
    them, and KVM's Makefile names virt/kvm by way of arch/x86/kvm: hence two more maps.
    """
    maps = [f"-fmacro-prefix-map={source}/arch/x86/kvm/../../../=", "-fmacro-prefix-map=../src/="]
    return {
        **toolchain.variables,
        # The user's environment must not reach into the build.
        "ARCH": arch,
        "CROSS_COMPILE": "",
        "KCFLAGS": " ".join(maps),
        "LOCALVERSION": local_version,
        "KBUILD_BUILD_TIMESTAMP": TIMESTAMP,
        "KBUILD_BUILD_USER": "kvm-kbuild",
        "KBUILD_BUILD_HOST": "localhost",
        "KBUILD_BUILD_VERSION": "1",
    }


def make_environment(slot: Path) -> dict[str, str]:
    """Environment of every call of make. `slot` is the folder of source and object folders.

    ccache takes paths below the slot as relative, and all slots have the same shape, so that what one
    tree compiled is a hit in another.
    """
    return {
        "LC_ALL": "C",
        "MAKEFLAGS": "",
        **NOT_THE_USERS,
        # Makefile takes it for what is to be built, whatever `.config` says.
        "KCONFIG_CONFIG": ".config",
        "CCACHE_BASEDIR": str(slot),
        "CCACHE_NOHASHDIR": "1",
    }
