"""How a build can be done again by hand: written before it starts, because a build can be killed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import msgspec

from kbuild.build.request import BuildRequest
from kbuild.build.toolchain import make_variables
from kbuild.configure.tree import Tree
from kbuild.paths import make_folder, write_atomically

_APPLY = """\
# The patches that lie beside this script go onto a copy of the tree.
patches=$(realpath "$(dirname "$0")/patches")
rm -rf "$objects/patched-tree"
mkdir "$objects/patched-tree"
tar -C "$tree" --exclude=./.git -cf - . | tar -C "$objects/patched-tree" -xf -
tree="$objects/patched-tree"
for patch in "$patches"/*; do
    (cd "$tree" && GIT_DIR=/dev/null GIT_CONFIG_GLOBAL=/dev/null git apply --whitespace=nowarn "$patch")
done
"""


def describe(request: BuildRequest, folder: Path, config: Path) -> None:
    """Write into the run's folder what it takes to do a build again, whose `.config` is the file `config`.

    That is `metadata.json`, `config`, `reproduce.sh`, and what is on top of the tree: `tree.patch`, a checkout's own
    changes, and in `patches/` what was asked for.
    """
    tree = request.tree
    metadata = {
        "tree": {
            "asked": tree.asked,
            "identity": tree.identity,
            "version": tree.version,
            "commit": tree.commit,
            "package": tree.package,
            "patches": [patch.name for patch in tree.patches],
            "source": str(tree.source),
        },
        "toolchain": dict(request.toolchain.versions),
        "variables": request.variables,
        "environment": request.environment,
        "objects": str(request.objects),
        "command": request.argv,
    }
    write_atomically(folder / "metadata.json", msgspec.json.format(msgspec.json.encode(metadata), indent=1))
    write_atomically(folder / "config", config.read_bytes())
    keep_patches(tree, folder)
    write_atomically(folder / "reproduce.sh", script(request), mode=0o755)


def keep_patches(tree: Tree, folder: Path) -> None:
    """Write what is on top of the tree into the run's folder, unless it is there."""
    if tree.patch and not (folder / "tree.patch").exists():
        write_atomically(folder / "tree.patch", tree.patch)
    for name, content in _patches(tree):
        if not (path := make_folder(folder / "patches") / name).exists():
            write_atomically(path, content)


def _patches(tree: Tree) -> Iterator[tuple[str, bytes]]:
    """Names that sort as the patches were given, and what git applied."""
    for number, patch in enumerate(tree.patches, 1):
        yield f"{number:03}-{re.sub(r'[^A-Za-z0-9_.-]', '_', patch.title)}", patch.content


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
    variables = make_variables(request.toolchain, request.local_version, "$tree", request.symbols.arch)
    words = {key: value.removeprefix("ccache ") for key, value in variables.items()}
    # In double quotes, for the shell has to put the tree's folder in; nothing else in them is special.
    assignments = " ".join(f'"{key}={value}"' for key, value in words.items())
    goals = request.targets if request.whole else ("-k", *request.targets)
    return f"""#!/bin/sh
# Builds the kernel and the modules of this run again. usage: reproduce.sh TREE OBJECTS
# TREE is only read.
{get}
# Compiler: {request.toolchain.compiler}; linker: {request.toolchain.versions["ld"]}
set -eu
tree=$(realpath "${{1:?usage: reproduce.sh TREE OBJECTS}}")
objects=$(realpath -m "${{2:?usage: reproduce.sh TREE OBJECTS}}")
{exports}mkdir -p "$objects"
{_APPLY if tree.patches else ""}cp "$(dirname "$0")/config" "$objects/.config"
set -- {assignments}
make -C "$tree" O="$objects" "$@" olddefconfig
make -C "$tree" O="$objects" "$@" -j"$(nproc)" {shlex.join(goals)}
"""
