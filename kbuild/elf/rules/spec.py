"""A rule file (`profiles/rules/*.toml`), as it is written. What it means is in docs/rules.md."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from kbuild import toml
from kbuild.errors import UserError
from kbuild.versions import KernelRange

Names = str | tuple[str, ...]
VENDOR = "vendor"
"""In place of a module's name: the vendor module that the rule is asked of."""


Paths = Literal["all", "success", "error"]
"""Ways through an entry, by how it returns in the end."""


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that happens on a way through the code."""

    call: Names | None = None
    """Functions, by names or globs; of a list those that exist count."""
    store: Names | None = None
    """Objects that are written, likewise."""
    read: Names | None = None
    """Objects that are read, likewise."""
    module: str | None = None
    """That defines it; `vendor`: the one that is asked of."""
    arg: str | None = None
    """A string that the call is given."""
    success: Literal["zero", "nonnull", "not-err"] | None = None
    """It counts when it has returned so."""

    def __post_init__(self) -> None:
        if sum(one is not None for one in (self.call, self.store, self.read)) != 1:
            raise ValueError("give one of call, store and read")
        if self.call is None and (self.arg or self.success):
            raise ValueError("arg and success are a call's")

    @property
    def kind(self) -> str:
        """`call`, `store` or `read`."""
        return "call" if self.call is not None else "store" if self.store is not None else "read"

    @property
    def names(self) -> tuple[str, ...]:
        """As a list, always."""
        names = self.call or self.store or self.read or ()
        return (names,) if isinstance(names, str) else names

    def told(self, names: Iterable[str]) -> str:
        """For a person, with some of the names."""
        shown = " or ".join(names) or " or ".join(self.names)
        text = {"call": f"{shown}()", "store": f"the store to {shown}", "read": f"the read of {shown}"}[self.kind]
        return f'{text} of "{self.arg}"' if self.arg else text


class OrderRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[[order]]`: before `then` happens, `first` has happened."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    """Its name in findings."""
    then: Event
    """What must not happen before; a call counts when it is entered."""
    first: Event | None = None
    """What has happened before; a call counts when it has returned."""
    within: Event | None = None
    """`then` happens only while such a call is active."""
    reason: str = ""
    """Why, with file and function."""
    kernels: KernelRange = msgspec.field(default_factory=KernelRange)
    """For which it is; absent: all."""
    entry: str = "init"
    """Where it is asked: `init` or `exit` of each vendor module, or a function's name."""
    paths: Paths = "all"
    """Of the entry: all, or those on which it returns so in the end."""
    optional: bool = False
    """It may be that `then` cannot happen."""

    def __post_init__(self) -> None:
        if self.first is None and self.within is None:
            raise ValueError("give first, within, or both")
        if self.within is not None and self.within.kind != "call":
            raise ValueError("within is a call")
        if self.then.success is not None:
            raise ValueError("then counts when it is entered: success is first's")


class SymbolRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[[symbol]]`: a symbol lies in a section."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    """Its name in findings."""
    name: str
    """Of the symbol."""
    module: str
    """That has it."""
    section: str
    """A name or a glob."""
    reason: str = ""
    """Why, with file and function."""
    kernels: KernelRange = msgspec.field(default_factory=KernelRange)
    """For which it is; absent: all."""
    optional: bool = False
    """It need not be there."""


Bytes = Annotated[int, msgspec.Meta(ge=0)]


class SectionRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[[section]]`: a module has such a section or not, or not more of it. One that is empty is none."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    """Its name in findings."""
    name: str
    """A name or a glob."""
    module: str | None = None
    """`vendor`: each vendor module; absent: each module."""
    present: bool | None = None
    """Whether it is there."""
    max_bytes: Bytes | None = None
    """Of all sections of that name together."""
    reason: str = ""
    """Why, with file and function."""
    kernels: KernelRange = msgspec.field(default_factory=KernelRange)
    """For which it is; absent: all."""

    def __post_init__(self) -> None:
        if self.present is None and self.max_bytes is None:
            raise ValueError("give present, max_bytes, or both")
        if self.present is False and self.max_bytes is not None:
            raise ValueError("what is not present has no max_bytes")


class BudgetRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[[budget]]`: a part of a module, a function or a struct is not larger than that."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    """Its name in findings."""
    max_bytes: Bytes
    """That it may have."""
    module: str | None = None
    """`vendor`: each vendor module; absent: each module, or each that has the function or struct."""
    of: Literal["init", "exit", "text", "data", "core", "total"] | None = None
    """`text` and `data` are what stays, `core` both of them."""
    function: str | None = None
    """With all parts and clones that the compiler makes of it."""
    struct: str | None = None
    """Or a union: as BTF or DWARF says."""
    optional: bool = False
    """The function or struct need not be there."""
    reason: str = ""
    """Why so much."""
    kernels: KernelRange = msgspec.field(default_factory=KernelRange)
    """For which it is; absent: all."""

    def __post_init__(self) -> None:
        if sum(one is not None for one in (self.of, self.function, self.struct)) != 1:
            raise ValueError("give one of of, function and struct")


Rule = OrderRule | SymbolRule | SectionRule | BudgetRule


Argument = Annotated[int, msgspec.Meta(ge=1, le=6)]
"""Of a function, the first one is 1. What is on the stack is not looked at."""


class Resource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[[resource]]`: functions that acquire something, and those that release it."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    """Its name in findings."""
    what: str
    """In words: `slab cache`."""
    acquire: tuple[str, ...]
    """Functions, by their names or globs."""
    release: tuple[str, ...] = ()
    """The same. Zero in place of what is to be released is taken by all of them, and releases nothing."""
    success: Literal["zero", "positive", "nonnull", "not-err", "always"] = "always"
    """It has been acquired where `acquire` returned so. `positive`: if code takes that for success on some way."""
    handle: Literal["result"] | Argument = 1
    """What `release` is given: the result of `acquire`, or what that argument of it was."""
    given: Argument = 1
    """Which argument of `release` that is."""
    also: Argument | None = None
    """Or what that argument of `acquire` was."""
    slot: bool = False
    """There is one place for all: `acquire` puts something there, and 0 takes it out."""
    name: Argument | None = None
    """The argument of `acquire` that is a string which names it."""
    name_at: int | None = None
    """Where the object that it is released by has a pointer to that string: an offset in bytes."""
    seen: tuple[str, ...] = ()
    """The kinds of a host's state (docs/agent.md) in which it is there, by its name, as long as it is held."""
    parent: Argument | None = None
    """Where that argument of `acquire` is not 0, it goes when that one is released: then it is not looked at."""

    def __post_init__(self) -> None:
        if self.slot == bool(self.release):
            raise ValueError("give release, or slot = true")
        if self.handle == "result" and self.success in ("zero", "always"):
            raise ValueError("with handle = 'result' success is positive, nonnull or not-err")


class VendorRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[vendor]`: which modules `entry = "init"` is asked of."""

    imports: tuple[str, ...] = ()
    """A module that imports one of these is one."""
    leaves: tuple[str, ...] = ()
    """Modules whose code is not followed, as the kernel's is not."""


class RuleFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of a file."""

    vendor: VendorRule = VendorRule()
    order: tuple[OrderRule, ...] = ()
    symbol: tuple[SymbolRule, ...] = ()
    section: tuple[SectionRule, ...] = ()
    budget: tuple[BudgetRule, ...] = ()
    resource: tuple[Resource, ...] = ()


class Rules(msgspec.Struct, frozen=True):
    """Of all files that are asked."""

    vendor: VendorRule = VendorRule()
    orders: tuple[OrderRule, ...] = ()
    symbols: tuple[SymbolRule, ...] = ()
    sections: tuple[SectionRule, ...] = ()
    budgets: tuple[BudgetRule, ...] = ()
    resources: tuple[Resource, ...] = ()
    """No rules, but what init may acquire: asked of every module."""

    @property
    def every(self) -> tuple[Rule, ...]:
        """Of any kind."""
        return (*self.orders, *self.symbols, *self.sections, *self.budgets)


def read_rules(paths: tuple[Path, ...]) -> Rules:
    """Read rule files. Raises UserError in one line, also for an id that is there twice."""
    files = [toml.read(path, RuleFile) for path in paths]
    seen: dict[str, Path] = {}
    for path, file in zip(paths, files, strict=True):
        every: tuple[Rule | Resource, ...]
        every = (*file.order, *file.symbol, *file.section, *file.budget, *file.resource)
        for one in every:
            name = one.id
            if name in seen:
                kind = "resource" if isinstance(one, Resource) else "rule"
                raise UserError(f"{path}: the {kind} '{name}' is in {seen[name]} already")
            seen[name] = path
    return Rules(
        VendorRule(
            tuple(dict.fromkeys(name for file in files for name in file.vendor.imports)),
            tuple(dict.fromkeys(name for file in files for name in file.vendor.leaves)),
        ),
        tuple(rule for file in files for rule in file.order),
        tuple(rule for file in files for rule in file.symbol),
        tuple(rule for file in files for rule in file.section),
        tuple(rule for file in files for rule in file.budget),
        tuple(one for file in files for one in file.resource),
    )
