"""What a profile asks of a tree: symbols, a build, and why a symbol has its value."""

from __future__ import annotations

from typing import Any

import msgspec

from kbuild import log
from kbuild.build.request import BuildRequest
from kbuild.build.toolchain import find_toolchain
from kbuild.configure.conf import Configuration, configure
from kbuild.configure.fragment import Fragment
from kbuild.configure.kconfig import explain
from kbuild.configure.request import Request
from kbuild.configure.tree import Tree, open_tree
from kbuild.profile import Profile, read_profile


def requested_symbols(profile: Profile) -> Request:
    """What a profile asks of the configuration. Raises UserError for a fragment that cannot be read."""
    return Request(profile.settings.configure.base, tuple(map(Fragment.read, profile.fragments)))


def build_request(profile: Profile, tree: Tree, symbols: Request) -> BuildRequest:
    """What a profile asks to be built of a tree, with this system's toolchain."""
    return BuildRequest(
        tree=tree,
        symbols=symbols,
        toolchain=find_toolchain(),
        local_version=profile.local_version,
        warnings_count=profile.settings.build.warnings_count,
    )


def write_configuration(wanted: BuildRequest, *, reuse: bool = False) -> Configuration:
    """Write `.config` into the object folder. Raises UserError where a requested symbol did not take effect.

    `reuse`: leave it, where nothing that it was made of has changed.
    """
    source, objects = wanted.tree.source, wanted.objects
    return configure(source, objects, wanted.symbols, make_variables=wanted.variables, predict=True, reuse=reuse)


def explain_symbol(
    symbol: str, tree: str, rev: str | None, profile: str, flavour: str | None = None, *, refresh: bool = False
) -> dict[str, Any]:
    """What `explain --json` prints: why a symbol has its value in a profile's configuration of a tree.

    Raises UserError for what is no symbol.
    """
    log.configure()
    request = requested_symbols(read_profile(profile, flavour))
    with open_tree(tree, rev, refresh=refresh) as opened:
        explanation = explain(opened.source, None, symbol, request)
    data: dict[str, Any] = msgspec.to_builtins(explanation)
    return data
