"""An mbox as mailing lists keep it: which of its messages are the patches of the series, and on what they stand."""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

from kbuild.errors import UserError

MAX_BYTES = 256 << 20
"""Of an mbox."""
MAX_PATCHES = 1000

# As git's own mailsplit has it: a paragraph may begin with `From `, and format-patch does not quote that.
_FROM = re.compile(rb"^From [^\n]*\d\d:\d\d:\d\d[^\n]* \d{4}[^\n]*\n", re.MULTILINE)
_SUBJECT = re.compile(r"^\[(?P<tags>[^\]]*\bPATCH(?:v\d+)?\b[^\]]*)\]\s*(?P<title>.*)$", re.IGNORECASE | re.DOTALL)
_VERSION = re.compile(r"(?:\b|PATCH)v(\d+)\b", re.IGNORECASE)
_NUMBER = re.compile(r"\b(\d+)/(\d+)\b")
_BASE = re.compile(r"^base-commit: ([0-9a-f]{12,40})\s*$", re.MULTILINE)
_DIFF = re.compile(r"^(?:diff --git |--- \S+\n\+\+\+ )", re.MULTILINE)


@dataclass(frozen=True)
class Mail:
    """A patch of the series."""

    number: int
    subject: str
    raw: bytes
    """The whole message, as `git am` takes it."""


@dataclass(frozen=True)
class Mailbox:
    """The patches of a series in their order, and the commit that its author says they stand on."""

    mails: tuple[Mail, ...]
    base: str | None


@dataclass(frozen=True)
class _Found:
    version: int
    number: int
    of: int
    title: str
    mail: Mail | None
    """None of a cover letter."""
    text: str

    def __str__(self) -> str:
        return f"{self.number}/{self.of} ({self.title})"


def read_mbox(name: str) -> Mailbox:
    """The newest version of the series in an mbox; cover letter, replies and what else is in a thread are passed over.

    Raises UserError for what cannot be read or holds no patch, where one of the series is missing, and where the mails
    of that version are of two.
    """
    path = Path(name).expanduser()
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"--mbox {name}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"--mbox {name}: larger than {MAX_BYTES >> 20} MiB")
    every = [one for message in _messages(data) if (one := _look(message)) is not None]
    if not any(one.mail for one in every):
        raise UserError(f"--mbox {name}: no message in it has a subject with [PATCH] and a diff")
    version = max(one.version for one in every if one.mail)
    ours = [one for one in every if one.version == version]
    count = ours[0].of
    by_number: dict[int, Mail] = {}
    firsts: dict[int, _Found] = {}
    for one in ours:
        # The list's copy and one's own are the same message; others are a second series in the thread.
        first = firsts.setdefault(one.number, one)
        if one.of != count or one.title != first.title:
            other = ours[0] if one.of != count else first
            raise UserError(
                f"--mbox {name}: {other} and {one} are not of one series: keep the mails of the one to judge"
            )
        if one.mail is not None:
            by_number.setdefault(one.number, one.mail)
    if count > MAX_PATCHES:
        raise UserError(f"--mbox {name}: a series of {count} patches, and at most {MAX_PATCHES} are judged")
    if missing := [number for number in range(1, count + 1) if number not in by_number]:
        raise UserError(f"--mbox {name}: patch {missing[0]} of {count} is not in it (version {version})")
    bases = [found[1] for one in ours if (found := _BASE.search(one.text))]
    return Mailbox(tuple(by_number[number] for number in sorted(by_number)), bases[0] if bases else None)


def _messages(data: bytes) -> Iterator[bytes]:
    """Each message. A line in a body that begins with `From ` is quoted in an mbox, so these lines are borders."""
    data = data.replace(b"\r\n", b"\n")
    borders = [
        found.start() for found in _FROM.finditer(data) if found.start() == 0 or data[: found.start()].endswith(b"\n\n")
    ]
    if not borders:
        yield data  # one message, as a mail program saves it
        return
    for start, end in zip(borders, [*borders[1:], len(data)], strict=True):
        yield data[start:end]


def _look(raw: bytes) -> _Found | None:
    """What a message is to a series; None for what is none of its patches, nor its cover letter."""
    message = email.message_from_bytes(
        raw.partition(b"\n")[2] if raw.startswith(b"From ") else raw, policy=email.policy.default
    )
    assert isinstance(message, EmailMessage)
    subject = " ".join(str(message.get("Subject", "")).split())
    found = _SUBJECT.match(subject)
    if not found:
        return None
    text = _text(message)
    version, number = _VERSION.search(found["tags"]), _NUMBER.search(found["tags"])
    place, of = (int(number[1]), int(number[2])) if number else (1, 1)
    if place > of or not (place == 0 or _DIFF.search(text)):
        return None
    title = "".join(one if one.isprintable() else "?" for one in found["title"])
    mail = Mail(place, title, raw) if place else None
    return _Found(int(version[1]) if version else 1, place, of, title, mail, text)


def _text(message: EmailMessage) -> str:
    """The text of a message; of one that is damaged, what can be read."""
    try:
        part = message.get_body(("plain",))
        content = part.get_content() if part is not None else ""
    except (LookupError, ValueError, KeyError):
        return ""
    return str(content).replace("\r\n", "\n")
