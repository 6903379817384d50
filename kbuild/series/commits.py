"""Which commits a series has: those of a range, oldest first, and what they stand on."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from kbuild.configure import git
from kbuild.errors import UserError
from kbuild.paths import cache_home, make_folder

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

    Raises UserError for what is no range of that checkout, and for an empty one.
    """
    found = re.fullmatch(r"(?P<base>[^-\s][^\s]*?)\.\.(?P<tip>[^\s.][^\s]*)?", asked)
    if not found or "..." in asked:
        raise UserError(f"--range {asked}: write BASE..TIP, such as v6.1..HEAD")
    base, tip = (git.commit_of(folder, one, "--range") for one in (found["base"], found["tip"] or "HEAD"))
    done = git.call("-C", folder, "rev-list", "--reverse", "--topo-order", f"{base}..{tip}", check=False)
    ids = done.output.split() if not done.status else []
    if not ids:
        raise UserError(f"--range {asked}: no commit of {folder} is in it")
    if len(ids) > MAX_COMMITS:
        raise UserError(f"--range {asked}: {len(ids)} commits, and at most {MAX_COMMITS} are judged")
    return commit(folder, base), [commit(folder, one) for one in ids]


def commit(folder: Path, rev: str) -> Commit:
    """A commit, with its subject as one line without control characters."""
    done = git.call("-C", folder, "log", "-1", "--format=%H %s", rev)
    name, _, subject = done.output.strip().partition(" ")
    return Commit(name, "".join(one if one.isprintable() else "?" for one in subject))
