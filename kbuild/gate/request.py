"""What a gate is asked for, and the files that say how it is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from kbuild.dmesg.signatures import Signatures
from kbuild.elf.rules.spec import Rules
from kbuild.errors import UserError
from kbuild.hosts.spec import HostSpec
from kbuild.load.faults.points import chosen
from kbuild.load.orders.format import Order
from kbuild.outcome import RUN_OF
from kbuild.profile import OrderChoice, Profile, find_hosts, find_orders, read_profile, resolve_reference


@dataclass(frozen=True, kw_only=True)
class GateRequest:
    """What to judge, and how far to go: `task` is `configure`, `build`, `load` or `gate`."""

    task: str
    command: str
    """As it can be pasted into a shell."""
    profile: str = "default"
    flavour: str | None = None
    """Of the profile's kernel."""
    tree: str = "debian:6.1"
    rev: str | None = None
    patches: tuple[str, ...] = ()
    """Files to be applied to the tree, in this order."""
    refresh: bool = False
    package: str | None = None
    """A kernel package of Debian's archive, in place of a tree."""
    modules: str | None = None
    """A folder of shipped files, in place of a tree."""
    kernel: str | None = None
    orders: tuple[str, ...] = ()
    first: str | None = None
    """Of the allocations that orders with `inject` let fail, the first one that is tried: `17`, or `page-3`."""
    last: str | None = None
    site: str | None = None
    """Only allocations at this call site, or a glob over call sites."""
    hosts: tuple[str, ...] = ()
    selftests: str | None = None
    """A folder of KVM's selftests that are built already."""
    rules: tuple[str, ...] = ()
    """Only these; empty: the profile's."""
    look: bool = False
    """After each step of all orders."""
    no_known: bool = False
    boot_ahead: bool = True
    """Let hosts boot while make works."""
    cluster: str | None = None
    """Address of a Dask scheduler whose workers load; without it, this machine does."""
    baseline: str | None = None
    """A run or a baseline's file, in place of the profile's."""
    cache_gb: float | str | None = None
    """How large the cache may become, in gigabytes; None: as large as `cache_limit` says."""
    verbosity: int = 0


def profile_of(request: GateRequest) -> Profile:
    """The profile, with the user's choice of orders, hosts and rules in place of its own."""
    profile = read_profile(request.profile, request.flavour)
    for option, names in (("order", request.orders), ("host", request.hosts)):
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"--{option} {name}: given twice; once is enough")
    if request.orders:
        try:
            profile = msgspec.structs.replace(profile, orders=find_orders(request.orders, Path.cwd()))
        except KeyError as error:
            raise UserError(f"--order {error.args[0]}: no such file, here or in profiles/orders/") from None
    profile = msgspec.structs.replace(profile, orders=_points(request, profile.orders))
    if request.hosts:
        try:
            profile = msgspec.structs.replace(profile, hosts=find_hosts(request.hosts, Path.cwd()))
        except KeyError as error:
            raise UserError(f"--host {error.args[0]}: no such file, here or in profiles/hosts/") from None
    if request.rules:
        rules = [resolve_reference("rules", name, Path.cwd()) for name in request.rules]
        for name, file in zip(request.rules, rules, strict=True):
            if file is None:
                raise UserError(f"--rules {name}: no such file, here or in profiles/rules/")
        profile = msgspec.structs.replace(profile, rules=tuple(file for file in rules if file))
    return profile


def _points(request: GateRequest, orders: OrderChoice) -> OrderChoice:
    """The orders, with the points that are asked for in place of all of their runs."""
    try:
        only = chosen(request.first, request.last, request.site)
    except ValueError as error:
        raise UserError(str(error)) from None
    if not only:
        return orders
    for path, runs in orders.items():
        if runs:
            raise UserError(f"--order {path.stem}{RUN_OF}{runs[0]}: with --from, --to or --only, name the order alone")
    return dict.fromkeys(orders, only)


@dataclass(frozen=True)
class LoadFiles:
    """What the load stage is to do, as read from files."""

    orders: tuple[Order, ...]
    hosts: tuple[HostSpec, ...]
    signatures: Signatures
    rules: Rules
