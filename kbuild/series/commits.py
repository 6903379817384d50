"""Which commits a series has: those of a range, oldest first, and what they stand on."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from kbuild.configure import git
from kbuild.errors import UserError
from kbuild.paths import cache_home, make_folder

SHORT = 12
"""Digits of a commit's id that are shown."""
MAX_COMMITS = 1000
"""Of a range: more is a typing error, such as two kernel versions."""


@dataclass(frozen=True)
class Commit:
    """One commit."""

    id: str
    subject: str


def repository(folder: Path, kind: str) -> Path:
    """Where a repository of our own lies that borrows the objects of a checkout; one of each kind. Locked beside it."""
    home = make_folder(cache_home() / "series")
    return home / f"{kind}-{hashlib.sha256(str(folder).encode()).hexdigest()[:10]}"


def commits_of(folder: Path, asked: str) -> tuple[Commit, list[Commit]]:
    """The base of a range `BASE..TIP`, and its commits, oldest first.

    Each is held against the one before it, so that has to be its parent: of a merge the first one, and what it merges
    is not gone into. Raises UserError for what is no range of that checkout, for an empty one, and for one whose first
    commit does not stand on its base.
    """
    found = re.fullmatch(r"(?P<base>[^-\s][^\s]*?)\.\.(?P<tip>[^\s.][^\s]*)?", asked)
    if not found or "..." in asked:
        raise UserError(f"--range {asked}: write BASE..TIP, such as v6.1..HEAD")
    base, tip = (git.commit_of(folder, one, "--range") for one in (found["base"], found["tip"] or "HEAD"))
    done = git.call("-C", folder, "rev-list", "--reverse", "--first-parent", "--parents", f"{base}..{tip}", check=False)
    lines = [line.split() for line in done.output.splitlines()] if not done.status else []
    ids = [one[0] for one in lines]
    if not ids:
        raise UserError(f"--range {asked}: no commit of {folder} is in it")
    if len(ids) > MAX_COMMITS:
        raise UserError(f"--range {asked}: {len(ids)} commits, and at most {MAX_COMMITS} are judged")
    below = lines[0][1] if len(lines[0]) > 1 else None
    if below != base:
        first, instead = (
            commit(folder, ids[0]),
            f"write {below[:SHORT]}..{found['tip'] or 'HEAD'}" if below else "rebase",
        )
        raise UserError(
            f"--range {asked}: its first commit, {first.id[:SHORT]} ({first.subject}), "
            f"does not stand on {found['base']}, which has other commits since: {instead}"
        )
    return commit(folder, base), [commit(folder, one) for one in ids]


def commit(folder: Path, rev: str) -> Commit:
    """A commit, with its subject as one line without control characters."""
    done = git.call("-C", folder, "log", "-1", "--format=%H %s", rev)
    name, _, subject = done.output.strip().partition(" ")
    return Commit(name, "".join(one if one.isprintable() else "?" for one in subject))
