"""Git checkouts of the user's, which are only read; and a repository of our own that borrows one's objects."""

from __future__ import annotations

import ast
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

from kbuild import command
from kbuild.errors import HarnessError, UserError

MAX_NEW_BYTES = 16 << 20
"""Of a new file that is part of what a checkout has over its commit."""
_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")
"""Set while git runs a hook, and then about the hook's repository: a gate may well be one."""


def call(*arguments: str | Path, settings: Mapping[str, str] | None = None, **options: Any) -> command.Completed:
    """Run git in the repository that the arguments name, whatever the environment says of another; as command.run().

    `settings`: of these variables, what we want of them ourselves.
    """
    if error := command.missing(["git"]):
        raise error
    ours = [f"{name}={value}" for name, value in (settings or {}).items()]
    return command.run(["env", *(f"--unset={name}" for name in _ELSEWHERE), *ours, "git", *arguments], **options)


def unquote(name: str) -> str:
    """A path as git prints it: one with unusual bytes stands in quotes, as in C."""
    return os.fsdecode(ast.literal_eval(f"b{name}")) if name.startswith('"') else name


def _run(
    folder: Path,
    *arguments: str,
    on_line: Callable[[str], None] | None = None,
    ours: Mapping[str, str] | None = None,
) -> None:
    # No fsmonitor: a program that the repository's configuration names is not ours to start.
    # No optional locks, no refresh by diff: the user's index is not written behind his back.
    # File names with unusual bytes in quotes, whatever the user likes to read.
    settings = ["-c", "core.fsmonitor=false", "-c", "diff.autoRefreshIndex=false", "-c", "core.quotePath=true"]
    done = call(
        "-C",
        folder,
        *settings,
        *arguments,
        settings=ours,
        env={"GIT_OPTIONAL_LOCKS": "0"},
        check=False,
        on_line=on_line,
    )
    if done.status:
        raise UserError(f"{folder}: git {arguments[0]}: {(done.output.strip().splitlines() or ['failed'])[0]}")


def diff(folder: Path, without: Set[str] = frozenset()) -> bytes:
    """What a checkout has over its commit, byte for byte, for it may not be text.

    With new files that git does not ignore, but for those `without`, and for what is larger than any source.
    """
    with tempfile.TemporaryDirectory(prefix="kvm-kbuild-") as temporary:
        file = Path(temporary) / "diff"
        with_new = _index_with_new(folder, without, Path(temporary))
        # In git's own format, whatever the user likes to read.
        style = ("--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")
        _run(folder, "diff", "--binary", *style, f"--output={file}", "HEAD", ours=with_new)
        return file.read_bytes()


def _index_with_new(folder: Path, without: Set[str], temporary: Path) -> dict[str, str]:
    """Settings for an index of ours, which knows the checkout's new files; the user's repository is only read."""
    lines: list[str] = []
    _run(folder, "ls-files", "--others", "--exclude-standard", on_line=lines.append)
    new = [name for line in lines if (name := unquote(line)) not in without and _is_source(folder / name)]
    if not new:
        return {}
    there = [
        Path(folder, call("-C", folder, "rev-parse", "--git-path", one).output.strip()) for one in ("index", "objects")
    ]
    index, objects = temporary / "index", temporary / "objects"
    shutil.copyfile(there[0], index)
    objects.mkdir()
    ours = {
        "GIT_INDEX_FILE": str(index),
        "GIT_OBJECT_DIRECTORY": str(objects),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(there[1]),
    }
    names = temporary / "names"
    names.write_bytes(b"".join(os.fsencode(name) + b"\0" for name in new))
    add = ("add", "--intent-to-add", f"--pathspec-from-file={names}", "--pathspec-file-nul")
    _run(folder, "--literal-pathspecs", *add, ours=ours)
    return ours


def _is_source(path: Path) -> bool:
    """Of a new file. A folder that is told as one holds a repository of its own."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return not stat.S_ISDIR(status.st_mode) and status.st_size <= MAX_NEW_BYTES


def refuse_changes(folder: Path, patches: Set[str]) -> None:
    """Refuse a checkout that is not as its commit; only the patches themselves may lie in it."""
    lines: list[str] = []
    _run(folder, "status", "--porcelain", "--no-renames", "--untracked-files=all", on_line=lines.append)
    states = {unquote(line[3:]): line[:2] for line in lines if re.match(r"[ MADTU?]{2} ", line)}
    changed = [path for path, state in states.items() if state != "??" or path not in patches]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{folder}: a patch goes on top of a commit, but there are changes: {', '.join(changed[:3])}{more}: "
            "commit or stash them, or give --rev HEAD to leave them out"
        )


def is_checkout(folder: Path) -> bool:
    """Whether the folder is the top of a git checkout (a worktree's `.git` is a file)."""
    return (folder / ".git").exists()


def commit_of(folder: Path, rev: str, option: str = "--rev") -> str:
    """The full id of a commit that was given with an option. Raises UserError where there is none."""
    if rev.startswith("-"):
        raise UserError(f"{option} {rev}: not a commit")
    done = call("-C", folder, "rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}", check=False)
    if done.status:
        raise UserError(f"{option} {rev}: no such commit in {folder}")
    return done.output.strip()


def files_of(folder: Path) -> list[str]:
    """Tracked files, and untracked ones that git does not ignore: a new source file belongs to the tree."""
    # By lines, not by NUL (-z): a line is read to its end, the megabytes of all names in one would not be.
    files: dict[str, None] = {}
    arguments = ("ls-files", "--cached", "--others", "--exclude-standard")
    _run(folder, *arguments, on_line=lambda line: files.setdefault(unquote(line)))
    return list(files)


def check_out(repository: Path, commit: str, target: Path) -> None:
    """Check a commit out into a repository of our own that borrows the user's objects.

    Only files that differ from the commit before are written, so that a series costs incremental
    builds. Nothing is registered in the user's repository. The target is the caller's alone.
    """
    if (target / ".git").is_dir():
        # Of a git that was killed: none is at work here now, and each would refuse to be.
        for lock in [*target.glob(".git/*.lock"), *target.glob(".git/refs/**/*.lock")]:
            lock.unlink()
    else:
        # Under its name it is whole.
        new = target.with_name(f".{target.name}.new")
        for folder in (new, target):
            shutil.rmtree(folder, ignore_errors=True)
        call("clone", "--quiet", "--shared", "--no-checkout", repository, new, timeout=600)
        new.rename(target)
    if call("-C", target, "cat-file", "-e", f"{commit}^{{commit}}", check=False).status:
        # Of a shallow repository a clone borrows nothing: it has what was there when it was made.
        call(
            "-C",
            target,
            "fetch",
            "--quiet",
            "--no-tags",
            "--update-shallow",
            repository,
            commit,
            check=False,
            timeout=600,
        )
    # A link to a file, as patched trees have them, changes its ctime: git would take it for another and write it anew.
    settings = ["-c", "advice.detachedHead=false", "-c", "core.trustctime=false"]
    checkout = ("checkout", "--quiet", "--force", "--detach", commit)
    done = call("-C", target, *settings, *checkout, check=False, timeout=600)
    if done.status:
        said = done.output.strip()[-200:]
        lacks = "unable to read" in said or "not a tree" in said or "missing blob" in said
        why = f"; if it is a partial clone: git -C {repository} fetch --refetch --no-filter" if lacks else ""
        raise HarnessError(f"{commit[:12]} of {repository} cannot be checked out: {said}{why}")
    call("-C", target, "clean", "-qffdx")
