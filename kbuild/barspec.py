"""The maintainers' bar as a profile has it: which configurations a series is built in, and what it is run with."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from kbuild.versions import KernelRange

Compiler = Literal["gcc", "clang"]


class BarBuild(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[bar.build]]`: a configuration in which KVM's own objects are built for each patch."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    """Lower case letters, digits and hyphens."""
    title: str
    """As the paragraph for the cover letter says it."""
    targets: tuple[str, ...]
    """Of make: a module (`arch/x86/kvm/kvm.ko`) goes through modpost, a folder (`arch/x86/kvm/`) is compiled."""
    why: str
    """What may be wrong there and nowhere else."""
    options: tuple[str, ...] = ()
    """Lines of a fragment, over those of `[bar]`: each has to take effect, or there is no such configuration."""
    compilers: tuple[Compiler, ...] = ("gcc",)
    """Each of them builds it; of `clang` the newest that is installed. Binutils link in any case."""
    base: str = "defconfig"
    """The target of the kernel's own `conf` that the fragments are laid over."""
    arch: Literal["x86_64", "i386"] = "x86_64"
    """Make's ARCH."""
    kernels: KernelRange = KernelRange()
    """For others it is not tested."""
    must: bool = False
    """Whether the bar is not met where this could not be built."""


class BarArea(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[bar.area]]`: files whose change asks for more orders."""

    name: str
    """As the page and the letter say it."""
    paths: tuple[str, ...]
    """Globs; `*` crosses slashes."""
    orders: tuple[str, ...]
    """Of each patch, besides those of `[load]`."""
    why: str
    """What these orders do for it."""
    must: bool = False
    """Whether they have to be run where such a file is changed, or should be."""


class BarSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[bar]`: what a series is held against."""

    fragments: tuple[str, ...]
    """Under the options of each `[[bar.build]]`: names in `fragments/`, or paths relative to the profile."""
    build: tuple[BarBuild, ...]
    """Configurations, in the order in which they are built."""
    tests: tuple[str, ...] = ()
    """Orders of the last patch alone: those that take long."""
    flavours: tuple[str, ...] = ()
    """Other kernels of the profile, of the last patch."""
    symbols: tuple[str, ...] = ()
    """Kconfig symbols whose value in each configuration is kept."""
    code: tuple[str, ...] = ("arch/x86/kvm/*", "virt/kvm/*")
    """Files in which module parameters are looked for."""
    area: tuple[BarArea, ...] = ()
    """What is run because of what is changed; a file is in the first that has it."""
    values: dict[str, tuple[str | int, ...]] = {}
    """Of parameters that are no switches, by `kvm.nx_huge_pages`: those that are tried."""
