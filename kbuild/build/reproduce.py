"""How a build can be done again by hand: written before it starts, because a build can be killed."""

from __future__ import annotations

import shlex
from pathlib import Path

import msgspec

from kbuild.build.request import BuildRequest
from kbuild.build.toolchain import make_variables
from kbuild.paths import write_atomically


def describe(request: BuildRequest, folder: Path) -> None:
    """Write `metadata.json`, `config`, `tree.patch` (where there is one) and `reproduce.sh` into the run's folder."""
    tree = request.tree
    metadata = {
        "tree": {
            "asked": tree.asked,
            "identity": tree.identity,
            "version": tree.version,
            "commit": tree.commit,
            "package": tree.package,
            "source": str(tree.source),
        },
        "toolchain": dict(request.toolchain.versions),
        "variables": request.variables,
        "environment": request.environment,
        "objects": str(request.objects),
        "command": request.argv,
    }
    write_atomically(folder / "metadata.json", msgspec.json.format(msgspec.json.encode(metadata), indent=1))
    write_atomically(folder / "config", (request.objects / ".config").read_bytes())
    if tree.patch:
        write_atomically(folder / "tree.patch", tree.patch)
    write_atomically(folder / "reproduce.sh", script(request), mode=0o755)


def script(request: BuildRequest) -> str:
    """A shell script that builds the same bytes from the same tree, with `config` beside it."""
    tree = request.tree
    get = f"# The tree: {tree.identity}."
    if tree.package:
        name, version = tree.package.split()
        get += f"\n# For example: apt-get download {name}={version}, dpkg-deb -x, tar -xf usr/src/{name}.tar.xz"
    elif tree.commit:
        get += f"\n# For example: git worktree add --detach TREE {tree.commit}"
        get += "\n# and there: git apply tree.patch, which lies beside this script" if tree.patch else ""
    environment = {key: value for key, value in request.environment.items() if not key.startswith("CCACHE_")}
    exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in environment.items())
    variables = make_variables(request.toolchain, request.local_version, "$tree")
    words = {key: value.removeprefix("ccache ") for key, value in variables.items()}
    # In double quotes, for the shell has to put the tree's folder in; nothing else in them is special.
    assignments = " ".join(f'"{key}={value}"' for key, value in words.items())
    return f"""#!/bin/sh
# Builds the kernel and the modules of this run again. usage: reproduce.sh TREE OBJECTS
{get}
# Compiler: {request.toolchain.versions["gcc"]}; linker: {request.toolchain.versions["ld"]}
set -eu
tree=$(realpath "${{1:?usage: reproduce.sh TREE OBJECTS}}")
objects=$(realpath -m "${{2:?usage: reproduce.sh TREE OBJECTS}}")
{exports}mkdir -p "$objects"
cp "$(dirname "$0")/config" "$objects/.config"
set -- {assignments}
make -C "$tree" O="$objects" "$@" olddefconfig
make -C "$tree" O="$objects" "$@" -j"$(nproc)" bzImage modules
"""
