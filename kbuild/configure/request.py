"""What is asked of a tree, and the make command that asks it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from kbuild.configure.fragment import Fragment, merge
from kbuild.errors import UserError

_BASE = re.compile(r"all(no|yes|mod|def)config|olddefconfig|defconfig|\w+_defconfig")


class Request(msgspec.Struct, frozen=True):
    """The symbols that somebody wants, and what they are put on."""

    base: str = "allnoconfig"
    """`allnoconfig`, `allyesconfig`, `allmodconfig`, `alldefconfig`, `olddefconfig` (each symbol at its default, as
    `alldefconfig`), `defconfig`, or the name of a `…_defconfig` of the tree."""
    fragments: tuple[Fragment, ...] = ()
    """The later one wins. Each line has to take effect."""
    arch: str = "x86_64"
    """Make's ARCH: `x86_64` or `i386`."""
    start: Path | None = None
    """A `.config` to start from, such as a distribution's, under the fragments. Its lines need not take effect."""

    def wanted(self, version: str) -> Fragment:
        """The symbols that are asked of a kernel of that version."""
        return merge(fragment.for_kernel(version) for fragment in self.fragments)

    @property
    def source_arch(self) -> str:
        """The folder under `arch/`, as the kernel's Makefile makes it of ARCH."""
        return {"x86_64": "x86", "i386": "x86"}.get(self.arch, self.arch)


def check(source: Path, output: Path, request: Request) -> None:
    """Raise UserError where make would refuse: no tree, an unclean tree, a folder's name, an unknown base."""
    if not _BASE.fullmatch(request.base):
        raise UserError(f"base '{request.base}': write allnoconfig, defconfig, or another configuration target of make")
    for path in (source, output):
        if re.search(r"[\s:]", str(path)):
            raise UserError(f"{path}: the kernel's Makefile allows no blanks or colons in its folders' names")
    if not (source / "Kconfig").is_file() or not (source / "scripts" / "kconfig").is_dir():
        raise UserError(f"{source}: no Linux source tree: it has no Kconfig, or no scripts/kconfig")
    if not (source / "arch" / request.source_arch / "Kconfig").is_file():
        raise UserError(f"{source}: has no architecture '{request.arch}'")
    if request.base.endswith("_defconfig"):
        file = Path("arch", request.source_arch, "configs", request.base)
        if not (source / file).is_file():
            raise UserError(f"base '{request.base}': {source} has no {file}")
    # The kernel's Makefile, target outputmakefile, says the same, after it has put files into O=.
    for trace in (".config", "include/config", f"arch/{request.source_arch}/include/generated"):
        if (source / trace).exists():
            raise UserError(
                f"{source}: was built in place ({trace} is there): run 'make mrproper' in it, or use a clone"
            )


def make_command(
    source: Path, output: Path, request: Request, make_variables: Mapping[str, str], *words: str
) -> list[str]:
    """A make command line for this tree and output folder."""
    variables = {"O": str(output), "ARCH": request.arch, **make_variables}
    return ["make", "-s", "-C", str(source), *(f"{name}={value}" for name, value in variables.items()), *words]
