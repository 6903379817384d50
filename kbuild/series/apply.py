"""The patches of an mbox as commits: `git am` in a repository of our own, which borrows the objects of the user's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.command import HOST_FAILED, Completed
from kbuild.configure import git
from kbuild.errors import HarnessError, UserError
from kbuild.paths import locked, require_room
from kbuild.series.commits import Commit, commit, repository
from kbuild.series.mail import Mail, Mailbox

ROOM_MB = 16
"""For what a patch adds, and its objects."""
MAX_REJECTED = 200
"""Lines of rejected hunks that are kept."""
# The same patches on the same base are the same commits, whoever applies them, and whenever.
_OURS = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_COMMITTER_NAME": "kvm-kbuild",
    "GIT_COMMITTER_EMAIL": "kvm-kbuild@localhost",
    "LC_ALL": "C",
}


@dataclass(frozen=True)
class Applied:
    """What came of an mbox."""

    repository: Path
    """Ours, with the commits in it."""
    base: Commit
    commits: tuple[Commit, ...]
    failed: Mail | None = None
    """The first patch that does not apply."""
    rejected: tuple[str, ...] = ()
    """What git says of it, and its rejected hunks."""


def apply(folder: Path, mailbox: Mailbox, rev: str | None) -> Applied:
    """Apply the patches to a commit of a checkout: `rev`, or the mails' `base-commit:`, or HEAD.

    Raises UserError where that commit is not in the checkout, HarnessError where git could not do its work.
    """
    base = _base(folder, mailbox, rev)
    ours = repository(folder, folder.name or "tree")
    with locked(ours.with_suffix(".lock")):
        if ours.is_dir():
            _run(ours, "am", "--quit", check=False)  # of a run that was killed
        git.check_out(folder, base.id, ours)
        commits: list[Commit] = []
        for mail in mailbox.mails:
            with tempfile.TemporaryDirectory(prefix="kvm-kbuild-") as scratch:
                file = Path(scratch) / "mail"
                file.write_bytes(mail.raw)
                done = _run(ours, "am", "--quiet", "--committer-date-is-author-date", file, check=False)
                if done.status:
                    _run(ours, "am", "--abort", check=False)
                    lines = done.output.strip().splitlines()
                    # The rest is how to go on by hand, which nobody can here.
                    said = [line for line in lines if line.startswith(("error:", "fatal:"))] or lines
                    _blame_machine(ours, done.status, said)
                    return Applied(ours, base, tuple(commits), mail, (*said[:20], *_rejected(ours, file)))
            made = commit(ours, "HEAD")
            # Nobody else's clean-up takes what no branch leads to.
            _run(ours, "update-ref", f"refs/kvm-kbuild/{made.id}", made.id)
            commits.append(made)
        return Applied(ours, base, tuple(commits))


def _base(folder: Path, mailbox: Mailbox, rev: str | None) -> Commit:
    if rev is None and mailbox.base is not None:
        try:
            return commit(folder, git.commit_of(folder, mailbox.base))
        except UserError:
            raise UserError(
                f"{folder} does not have the series' base-commit {mailbox.base[:12]}: fetch it, or give another --rev"
            ) from None
    return commit(folder, git.commit_of(folder, rev or "HEAD"))


def _blame_machine(ours: Path, status: int, said: Sequence[str]) -> None:
    """Raise HarnessError where it was not for the patch that git am ended."""
    blame = next((line for line in said if HOST_FAILED.search(line)), None)
    if blame or status > 128:  # with 128 itself git gives up, also for a patch that it cannot read
        raise HarnessError(f"{ours}: git am: {blame or f'ended with status {status}'}")
    # Not all of git says why it could not write.
    require_room(ours, ROOM_MB, "git am")


def _rejected(ours: Path, file: Path) -> list[str]:
    """The hunks of a patch that do not fit. The work tree is as its commit afterwards."""
    _run(ours, "apply", "--reject", file, check=False)
    lines: list[str] = []
    for path in sorted(ours.rglob("*.rej")):
        if path.is_symlink():  # the patch made it, and it may lead anywhere
            continue
        lines += path.read_text("utf-8", "replace").splitlines()
    _run(ours, "reset", "--quiet", "--hard", check=False)
    _run(ours, "clean", "-qffdx", check=False)
    return lines[:MAX_REJECTED]


def _run(folder: Path, *arguments: str | Path, check: bool = True) -> Completed:
    done = git.call("-C", folder, *arguments, env=_OURS, check=False, timeout=600)
    if check and done.status:
        raise HarnessError(f"{folder}: git {arguments[0]}: {done.output.strip()[-200:]}")
    return done
