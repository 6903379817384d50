"""Patch files: a diff, or a mail that holds one, read with distrust and applied by git to a few files of a tree."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild import command
from kbuild.configure.git import unquote
from kbuild.errors import UserError

MAX_BYTES = 32 << 20
"""Of a patch file; the largest of a kernel release are some megabytes."""

_GIT = {"GIT_DIR": os.devnull, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
"""Outside of any repository, for in one git passes over what is not below the current folder; configured by nobody."""
_MESSAGE = re.compile(rb"^From \S{1,200} .{0,60}\d\d:\d\d:\d\d.{0,30}\n(?=[\w-]+:)", re.MULTILINE)
"""Where a message of an mbox begins."""
_COMMIT = re.compile(rb"^commit [0-9a-f]{40}\b", re.MULTILINE)
"""Where a commit begins in the output of `git log -p`."""
_HEADER = re.compile(rb"[A-Za-z][\w-]*:[ \t\r\n]")
_ENCODED = re.compile(
    rb"^Content-(?:Transfer-Encoding:[ \t]*(?:quoted-printable|base64)|Type:[ \t]*multipart/)",
    re.MULTILINE | re.IGNORECASE,
)
_CHANGE = re.compile(
    rb"^(?:@@ -|GIT binary patch|(?:old|new file|deleted file) mode |(?:rename|copy) from )", re.MULTILINE
)
"""What a patch has that does something."""
_HUNK = re.compile(rb"@@ -(\d+)(?:,\d+)? \+\d+(?:,\d+)? @@")


@dataclass(frozen=True)
class Patch:
    """A patch file as it was read."""

    name: str
    """As the user named it."""
    content: bytes
    """What git applies: a mail's transfer encoding is undone, and line ends are as in the kernel."""
    raw: bytes
    """The file's own lines, for the line numbers of messages."""

    @property
    def title(self) -> str:
        """Its file name."""
        return Path(self.name).name

    def place(self, number: int, line: bytes) -> str:
        """`PATCH:LINE` of a line of the content, `PATCH` where the file has it in another form."""
        if self.content is not self.raw:
            lines = enumerate(self.raw.split(b"\n"), 1)
            number = next((number for number, one in lines if one.startswith(line[:60])), 0)
        return f"{self.name}:{number}" if number else self.name


def read_patch(name: str) -> Patch:
    """Read a patch file. Raises UserError in one line for what is none, or holds several patches."""
    try:
        with Path(name).expanduser().open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"--patch {name}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise UserError(f"--patch {name}: larger than {MAX_BYTES >> 20} MiB; this is no patch for a kernel")
    raw = _unix_lines(raw)
    for kind, count in (("messages", len(_MESSAGE.findall(raw))), ("commits", len(_COMMIT.findall(raw)))):
        if count > 1:
            raise UserError(f"{name}: holds {count} {kind}: give each patch with its own --patch, in their order")
    patch = Patch(name, _decode(raw), raw)
    _numstat(patch)
    if not _CHANGE.search(patch.content):
        raise UserError(f"{name}: not a patch: it has no hunks")
    return patch


def _unix_lines(data: bytes) -> bytes:
    """Without a mail client's carriage returns. In a diff of a file that has some of its own, other lines have none."""
    return data.replace(b"\r\n", b"\n") if data.count(b"\r\n") == data.count(b"\n") else data


def _decode(raw: bytes) -> bytes:
    """The patch as git takes it: in place of a mail with a transfer encoding, or with parts, the text that it means."""
    head = raw.partition(b"\n\n")[0]
    mail = _MESSAGE.match(raw) or _HEADER.match(raw)
    if not mail or not _ENCODED.search(head):
        return raw
    with tempfile.TemporaryDirectory(prefix="kvm-kbuild-") as folder:
        # What `git am` reads mails with.
        argv = ["git", "mailinfo", "-n", "--quoted-cr=strip", "message", "patch"]
        done = command.run(argv, cwd=Path(folder), env=_GIT, stdin=raw, check=False)
        diff = Path(folder) / "patch"
        return b"" if done.status or not diff.exists() else _unix_lines(diff.read_bytes())


def _git_apply(patch: Patch, *options: str, folder: Path | None = None) -> tuple[bool, list[str]]:
    """Whether git took it, and what git said."""
    argv = ["git", "apply", "--whitespace=nowarn", *options]
    done = command.run(argv, cwd=folder, env=_GIT, stdin=patch.content, check=False)
    return done.status == 0, [line for line in done.output.split("\n") if line]


def _numstat(patch: Patch, *options: str) -> list[str]:
    """The files that a patch changes, by their new names. Raises UserError where git sees no patch in it."""
    understood, lines = _git_apply(patch, "--numstat", *options)
    if not understood or not lines:
        said = (lines or ["it changes nothing"])[0].removeprefix("error: ").partition(" (allow")[0]
        where = re.search(r"(?:line |:)(\d+)\b", said)
        place = f"{patch.name}:{where[1]}" if where and patch.content is patch.raw else patch.name
        raise UserError(_printable(f"{place}: not a patch: git apply: {said}"))
    names = [unquote(line.split("\t", 2)[2]) for line in lines if line.count("\t") >= 2]
    if any(not name.isprintable() for name in names):
        raise UserError(f"{patch.name}: has a file name with unprintable characters, which no kernel tree has")
    return names


def apply_patches(source: Path, patches: Sequence[Patch], scratch: Path, tree: str) -> Mapping[str, Path | None]:
    """What the patches make of a tree, which is only read: each path that they change, and the new file or None.

    The new files are in `scratch`, an empty folder. `tree` names the tree in messages. Raises UserError where
    a patch does not apply.
    """
    touched: dict[str, None] = {}
    for number, patch in enumerate(patches):
        # The reverse has the old names of what is renamed.
        for path in (*_numstat(patch), *_numstat(patch, "-R")):
            if path not in touched:
                touched[path] = None
                _bring(source, path, scratch)
        applied, said = _git_apply(patch, folder=scratch)
        if not applied:
            before = f", patched with {', '.join(one.title for one in patches[:number])}" if number else ""
            raise UserError(_refusal(patch, said, tree + before, scratch))
    return {path: find(scratch, path) for path in touched}


def parents(path: str) -> Iterator[str]:
    """The folders of a relative path, outermost first."""
    parts = path.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def find(root: Path, path: str) -> Path | None:
    """A file or symbolic link below `root`, unless the way to it leads through a symbolic link."""
    if any((root / parent).is_symlink() for parent in parents(path)):
        return None
    file = root / path
    return file if file.is_symlink() or file.is_file() else None


def _bring(source: Path, path: str, scratch: Path) -> None:
    """Put what the tree has at a path, or in the way to it, where git will look for it."""
    if path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
        return  # git refuses to apply it
    for place in (*parents(path), path):
        original, copy = source / place, scratch / place
        if original.is_symlink() or original.is_file():
            if not os.path.lexists(copy):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(original, copy, follow_symlinks=False)
            return
        if place == path and original.is_dir():
            # In the tree it is not empty, and git must not take it for free.
            copy.mkdir(parents=True, exist_ok=True)
            (copy / ".in-the-tree").touch()


def _refusal(patch: Patch, said: Sequence[str], tree: str, scratch: Path) -> str:
    """One line: which hunk does not apply where, in git's words."""
    errors = [line.removeprefix("error: ") for line in said if line.startswith(("error: ", "fatal: "))]
    first = (errors or [*said, "it said nothing"])[0]
    if match := re.fullmatch(r"patch failed: (.*):(\d+)", first):
        file = match[1]
        number, line = _blamed(patch, file, int(match[2]))
        hunk = f": hunk {line.decode(errors='replace')}"
    else:
        quoted = re.search(r"'([^']+)'", first)
        file, hunk = quoted[1] if quoted else first.rpartition(": ")[0], ""
        number, line = _blamed(patch, file, None)
    more = sum(line.endswith(": patch does not apply") for line in errors) - 1
    hint = f"; nor to {more} more of its files" if more > 0 else ""
    if _git_apply(patch, "-R", "--check", folder=scratch)[0]:
        hint += "; the tree has this patch already"
    elif first.endswith(": No such file or directory"):
        hint += "; paths begin at the kernel's top folder, after a/ and b/"
    return _printable(
        f"{patch.place(number, line)}: does not apply to {file} of {tree}{hunk}: git apply: {first}{hint}"
    )


def _blamed(patch: Patch, file: str, start: int | None) -> tuple[int, bytes]:
    """Number and text of the line where the patch begins to speak of a file, or of its hunk at line `start` there."""
    name = os.fsencode(file)
    ours = False
    lines = patch.content.split(b"\n")
    for number, (line, following) in enumerate(zip(lines, [*lines[1:], b""], strict=True), 1):
        if line.startswith(b"diff --git ") or (line.startswith(b"--- ") and following.startswith(b"+++ ")):
            words = (line + b" " + following).split()
            ours = any(word == name or word.endswith(b"/" + name) for word in words)
            if ours and start is None:
                return number, line
        elif ours and (match := _HUNK.match(line)) and int(match[1]) == start:
            return number, line
    return 0, b"@@ -%d" % start if start else b""


def _printable(text: str) -> str:
    """What came out of a patch is shown, not interpreted by a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
