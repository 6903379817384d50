"""Profiles: one TOML file that says what is asked of a kernel, with the files beside it that it names."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import msgspec

from kbuild import toml
from kbuild.barspec import BarSettings
from kbuild.errors import UserError
from kbuild.outcome import RUN_OF, Known
from kbuild.paths import PROJECT

SHIPPED = PROJECT / "profiles"


class ConfigureSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[configure]`"""

    fragments: tuple[str, ...]
    """Names in `fragments/`, or paths relative to the profile; later ones win."""
    base: str = "allnoconfig"
    """The target of the kernel's own `conf` that the fragments are laid over."""


class BuildSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[build]`"""

    local_version: str = "-kbuild"
    """A fixed one: a commit must not change the version of everything."""
    warnings_count: tuple[str, ...] = ("arch/x86/kvm/", "virt/")
    """A compiler warning in files below these counts as FAIL; elsewhere it is shown."""


class InspectSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[inspect]`"""

    rules: tuple[str, ...] = ()
    """Names in `rules/`, or paths relative to the profile: what is asked of the modules."""


class LoadSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[load]`"""

    orders: tuple[str, ...]
    """Names or globs in `orders/`, `ORDER@RUN`, `all`, or paths relative to the profile."""
    hosts: tuple[str, ...]
    """Names or globs in `hosts/`, `all`, or paths relative to the profile."""
    command_line: tuple[str, ...] = ()
    """Of the kernel under test, on every host."""


class Flavour(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[flavour]]`: another kernel of the same profile, built only if it is asked for."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]+$")]
    """Becomes a part of the kernel's version."""
    title: str
    """What it is for, in a line."""
    fragments: tuple[str, ...]
    """Over those of the profile."""
    orders: tuple[str, ...] = ()
    """In place of the profile's; empty: those."""
    hosts: tuple[str, ...] = ()
    """In place of the profile's; empty: those."""
    command_line: tuple[str, ...] = ()
    """Behind the profile's: of a word that is there twice the kernel takes the last."""
    slowness: Annotated[float, msgspec.Meta(ge=1, le=100)] = 1.0
    """So many times as long as the profile's kernel this one may take for everything."""


class Require(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[release.require]]`: what has to be judged. By ids."""

    host: str
    """The id of a host."""
    orders: tuple[str, ...]
    """The ids of orders."""


GrowthPart = Literal["init", "exit", "text", "data", "core", "total"]
"""Of a module: the bytes of one of its parts, of text and data, or of all."""


class Growth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[release.growth]]`: by how much a part of a module may be larger than in the baseline."""

    of: GrowthPart
    """A part of it, `core` for text and data, or all."""
    max_bytes: Annotated[int, msgspec.Meta(ge=0)]
    """By which it may be larger."""
    module: str | None = None
    """Absent: each of them, by itself."""
    reason: str = ""
    """Why so much, for whoever reads the finding."""


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[release]`: what a gate asks besides, so that a kernel may go out."""

    baseline: str | None = None
    """A file that `inv runs --baseline RUN` printed, from the profile's folder: what is found in it is not new."""
    owners: bool = True
    """Each known finding has to name one."""
    require: tuple[Require, ...] = ()
    growth: tuple[Growth, ...] = ()


class KnownFinding(Known, frozen=True, forbid_unknown_fields=True):
    """`[[known]]`: as records have it, but for a misspelt key, which is refused here."""


class ProfileFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A profile as it is written."""

    title: str
    """What is asked, in a line."""
    configure: ConfigureSettings
    """The kernel's configuration."""
    load: LoadSettings
    """What is loaded, and where."""
    build: BuildSettings = BuildSettings()
    """How it is built, and what counts of that."""
    inspect: InspectSettings = InspectSettings()
    """What is asked of the objects."""
    known: tuple[KnownFinding, ...] = ()
    """A finding that is shown with its reason, and does not count."""
    release: Release | None = None
    bar: BarSettings | None = None
    flavour: tuple[Flavour, ...] = ()


OrderChoice = dict[Path, tuple[str, ...]]
"""The files of orders, each with the names of those of its runs that are asked for; none: all of them."""


class Profile(msgspec.Struct, frozen=True):
    """A profile with its references resolved."""

    name: str
    path: Path
    settings: ProfileFile
    fragments: tuple[Path, ...]
    rules: tuple[Path, ...]
    orders: OrderChoice
    hosts: tuple[Path, ...]
    command_line: tuple[str, ...]
    local_version: str
    """With the flavour's name behind it."""
    flavour: str | None = None
    slowness: float = 1.0


_KINDS = {"rules": ".toml", "fragments": ".config", "orders": ".toml", "hosts": ".toml"}


def find_profile(name: str) -> Path:
    """The file of a profile: one of ours by name, or any by path (with a `/` or `.toml`)."""
    if "/" in name or name.endswith(".toml"):
        return Path(name).expanduser()
    path = SHIPPED / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in SHIPPED.glob("*.toml")))
        raise UserError(f"--profile {name}: no such profile; known: {known}; or give a path to a .toml file")
    return path


def read_profile(name: str, flavour: str | None = None) -> Profile:
    """Read a profile, or a flavour of it, and resolve what it names.

    Raises UserError in one line with file, line and key; what is wrong with another flavour than the one that is asked
    for, too.
    """
    path = find_profile(name)
    settings = toml.read(path, ProfileFile)
    _refuse_twice(path, "inspect.rules", settings.inspect.rules)
    _refuse_twice(path, "load.orders", settings.load.orders)
    _refuse_twice(path, "load.hosts", settings.load.hosts)
    profile = Profile(
        name=path.stem,
        path=path,
        settings=settings,
        fragments=_resolve(path, "configure.fragments", "fragments", settings.configure.fragments),
        rules=_resolve(path, "inspect.rules", "rules", settings.inspect.rules),
        orders=_orders(path, "load.orders", settings.load.orders),
        hosts=_hosts(path, "load.hosts", settings.load.hosts),
        command_line=settings.load.command_line,
        local_version=settings.build.local_version,
    )
    _check_release(profile)
    _check_bar(profile)
    names = tuple(one.name for one in settings.flavour)
    _refuse_twice(path, "flavour", names)
    flavours = {one.name: _flavoured(profile, f"flavour[{index}]", one) for index, one in enumerate(settings.flavour)}
    if flavour is None:
        return profile
    if flavour not in flavours:
        raise UserError(f"--flavour {flavour}: {path} has no such flavour; known: {', '.join(names) or 'none'}")
    return flavours[flavour]


def _check_release(profile: Profile) -> None:
    """What is required must be something that there is, and a known finding somebody's."""
    release = profile.settings.release
    if release is None:
        return
    for index, one in enumerate(release.require):
        key = f"release.require[{index}]"
        _resolve(profile.path, f"{key}.host", "hosts", (one.host,))
        _resolve(profile.path, f"{key}.orders", "orders", one.orders)
    for index, known in enumerate(profile.settings.known):
        if release.owners and not known.owner:
            place = _place(profile.path, f"known[{index}].finding")
            raise UserError(f"{place}: has no 'owner', which [release] asks for; or write owners = false there")


def _check_bar(profile: Profile) -> None:
    """What the bar names must be there, and no two of its builds have one name."""
    bar = profile.settings.bar
    if bar is None:
        return
    bar_fragments(profile, bar)
    _orders(profile.path, "bar.tests", bar.tests)
    for index, area in enumerate(bar.area):
        _orders(profile.path, f"bar.area[{index}].orders", area.orders)
    _refuse_twice(profile.path, "bar.build", tuple(one.name for one in bar.build))
    known = {one.name for one in profile.settings.flavour}
    for name in bar.flavours:
        if name not in known:
            raise UserError(f"{_place(profile.path, 'bar.flavours')}: there is no [[flavour]] '{name}' in this profile")


def bar_fragments(profile: Profile, bar: BarSettings) -> tuple[Path, ...]:
    """The files of the fragments that each of the bar's configurations has."""
    return _resolve(profile.path, "bar.fragments", "fragments", bar.fragments)


def _flavoured(profile: Profile, key: str, flavour: Flavour) -> Profile:
    """A flavour of a profile that is resolved already."""
    _refuse_twice(profile.path, f"{key}.orders", flavour.orders)
    _refuse_twice(profile.path, f"{key}.hosts", flavour.hosts)
    more = _resolve(profile.path, f"{key}.fragments", "fragments", flavour.fragments)
    orders = _orders(profile.path, f"{key}.orders", flavour.orders) if flavour.orders else profile.orders
    hosts = _hosts(profile.path, f"{key}.hosts", flavour.hosts) if flavour.hosts else profile.hosts
    return msgspec.structs.replace(
        profile,
        fragments=(*profile.fragments, *more),
        orders=orders,
        hosts=hosts,
        command_line=(*profile.command_line, *flavour.command_line),
        local_version=f"{profile.local_version}-{flavour.name}",
        flavour=flavour.name,
        slowness=flavour.slowness,
    )


def resolve_reference(kind: str, name: str, beside: Path) -> Path | None:
    """The file that `name` means: a path from the folder `beside`, or a file in its or our `kind` folder."""
    suffix = _KINDS[kind]
    candidates = [beside / kind / f"{name}{suffix}", SHIPPED / kind / f"{name}{suffix}"]
    if "/" in name or name.endswith(suffix):
        candidates = [beside / name]
    return next((path for path in candidates if path.is_file()), None)


ALL = "all"
"""Every order, or every host, there is."""


def find_orders(names: Sequence[str], beside: Path) -> OrderChoice:
    """The orders that names mean: of one file each, `all`, globs of names in `orders/`, and runs (`ORDER@RUN`).

    Raises KeyError with the name that means nothing.
    """
    found: OrderChoice = {}
    for name in names:
        path, run = resolve_reference("orders", name, beside), ""
        if path is None and RUN_OF in name:
            file, _, run = name.rpartition(RUN_OF)
            path = resolve_reference("orders", file, beside)
        paths = [path] if path else _matching("*" if name == ALL else name, beside, "orders")
        if not paths:
            raise KeyError(name)
        for one in paths:
            before = found.get(one)
            found[one] = (*before, run) if run and before else (run,) if run and before is None else ()
    return found


def find_hosts(names: Sequence[str], beside: Path) -> tuple[Path, ...]:
    """The hosts that names mean: of one file each, `all`, and globs of names in `hosts/`; each once.

    Raises KeyError with the name that means nothing.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = resolve_reference("hosts", name, beside)
        paths = [path] if path else _matching("*" if name == ALL else name, beside, "hosts")
        if not paths:
            raise KeyError(name)
        found |= dict.fromkeys(paths)
    return tuple(found)


def _matching(glob: str, beside: Path, kind: str) -> list[Path]:
    """Files by a glob of their names; one that lies beside hides ours."""
    by_name = {path.stem: path for folder in (SHIPPED, beside) for path in (folder / kind).glob("*.toml")}
    return [by_name[name] for name in sorted(fnmatch.filter(by_name, glob))]


def reference(kind: str, path: Path) -> str:
    """How a file is named on a command line: one of ours by its name, any other by its path."""
    return path.stem if path.parent == SHIPPED / kind else str(path.resolve())


def _resolve(profile: Path, key: str, kind: str, names: tuple[str, ...]) -> tuple[Path, ...]:
    found: list[Path] = []
    for name in names:
        path = resolve_reference(kind, name, profile.parent)
        if path is None:
            _no_file(profile, key, kind, name)
        found.append(path)
    return tuple(found)


def _no_file(profile: Path, key: str, kind: str, name: str) -> NoReturn:
    known = sorted({one.stem for one in (SHIPPED / kind).glob(f"*{_KINDS[kind]}")})
    raise UserError(
        f"{_place(profile, key)}: no file for '{name}'; expected a path, or one of {kind}/: {', '.join(known)}"
    )


def _orders(profile: Path, key: str, names: tuple[str, ...]) -> OrderChoice:
    try:
        return find_orders(names, profile.parent)
    except KeyError as error:
        _no_file(profile, key, "orders", error.args[0])


def _hosts(profile: Path, key: str, names: tuple[str, ...]) -> tuple[Path, ...]:
    try:
        return find_hosts(names, profile.parent)
    except KeyError as error:
        _no_file(profile, key, "hosts", error.args[0])


def _refuse_twice(profile: Path, key: str, names: tuple[str, ...]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{_place(profile, key)}: '{name}' is named twice; expected each once")


def _place(profile: Path, key: str) -> str:
    line = toml.locate(profile.read_text("utf-8"), key)
    return f"{profile}:{line}: {key}" if line else f"{profile}: {key}"
