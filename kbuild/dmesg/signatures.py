"""What lines of the kernel log mean: `signatures.toml`, read and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Literal

import msgspec

from kbuild import toml
from kbuild.errors import UserError
from kbuild.outcome import Status
from kbuild.versions import KernelRange

FILE = Path(__file__).with_name("signatures.toml")

FUNCTION = "function"
"""The group of a pattern, and the name in a title, for where it happened."""


class Severity(StrEnum):
    """What a line says about the kernel when nobody asked for it."""

    CRASH = "crash"
    """The kernel went down or killed a task: after it nothing else of this boot counts."""
    FAIL = "fail"
    """The kernel's code is wrong."""
    STALL = "stall"
    """So too, but an emulator can be as slow as that by itself."""
    UNKNOWN = "unknown"
    """An error that no signature knows."""
    ENVIRONMENT = "environment"
    """The CPU, firmware, emulator or the choice of files does not fit."""
    INFO = "info"
    """Never counts."""

    def status(self, *, emulated: bool) -> Status | None:
        """How it counts when it was not expected; None: it does not."""
        match self:
            case Severity.CRASH | Severity.FAIL:
                return Status.FAIL
            case Severity.STALL:
                return Status.ERROR if emulated else Status.FAIL
            case Severity.UNKNOWN | Severity.ENVIRONMENT:
                return Status.ERROR
            case Severity.INFO:
                return None


class Printk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a kernel prints it: a source file, and the format as it stands there (literals joined)."""

    source: str
    format: str
    kernels: KernelRange = KernelRange()


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[signature]]`; the file's head says what each key means."""

    id: str
    text: tuple[str, ...]
    meaning: str
    severity: Severity
    fixtures: tuple[str, ...]
    pattern: str = ""
    title: str = ""
    kernels: KernelRange = KernelRange()
    report: Literal["trace", "stack", "separator", "panic"] | None = None
    inside: tuple[str, ...] = ()
    kills: bool = False
    taint: str = ""
    printk: tuple[Printk, ...] = ()

    def match(self, line: str) -> re.Match[str] | None:
        """The match in a record's text, which may have several lines."""
        if self.pattern:
            return re.search(self.pattern, line, re.MULTILINE)  # compiled once: re keeps what it compiled
        return next((found for text in self.text if (found := re.search(re.escape(text), line))), None)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    signature: tuple[Signature, ...]
    owners: dict[str, str] = {}


class Signatures(msgspec.Struct, frozen=True):
    """All signatures, in the order in which they are tried."""

    signatures: tuple[Signature, ...]
    owners: Mapping[str, str]
    """Name of a slab cache or other object to the function whose part it is to remove it."""

    @property
    def ids(self) -> frozenset[str]:
        """All ids: what `log.must` and `log.may` of a load order may name."""
        return frozenset(s.id for s in self.signatures) | {UNKNOWN_ERROR}

    def get(self, signature: str) -> Signature:
        """The signature of that id. Raises KeyError."""
        for one in self.signatures:
            if one.id == signature:
                return one
        raise KeyError(signature)

    def for_kernel(self, kernel: str) -> tuple[Signature, ...]:
        """Those that hold for a kernel version such as `6.1.192`."""
        return tuple(s for s in self.signatures if kernel in s.kernels)


UNKNOWN_ERROR = "unknown-error"
"""The id of what is no signature: an error-level record that none knows."""


def load(path: Path = FILE) -> Signatures:
    """Read signatures. Raises UserError for a file that is not sound in itself: see `_problem`."""
    read = toml.read(path, _File)
    seen: set[str] = {UNKNOWN_ERROR}
    for number, signature in enumerate(read.signature):
        problem = f"id '{signature.id}' is there twice" if signature.id in seen else _problem(signature)
        if problem:
            line = toml.locate(path.read_text("utf-8"), f"signature[{number}].id")
            raise UserError(f"{path}:{line}: signature '{signature.id}': {problem}")
        seen.add(signature.id)
    for signature in read.signature:
        if unknown := [name for name in signature.inside if name not in seen]:
            raise UserError(f"{path}: signature '{signature.id}': inside: there is no signature '{unknown[0]}'")
    return Signatures(read.signature, read.owners)


def _problem(signature: Signature) -> str | None:
    """What is wrong with it: no line can match, or the pattern is none, or its own fixtures do not match."""
    if not signature.text or not all(signature.text) or any("\n" in text for text in signature.text):
        return "text: at least one literal, none of them empty or of more than one line"
    try:
        groups = set(re.compile(signature.pattern).groupindex)
    except re.error as error:
        return f"pattern: {error}"
    named = set(re.findall(r"\{(\w*)\}", signature.title))
    if missing := named - groups - {FUNCTION}:
        return f"title: the pattern has no group '{missing.pop()}'"
    if not signature.fixtures:
        return "fixtures: at least one line"
    for fixture in signature.fixtures:
        if not any(text in fixture for text in signature.text):
            return f"no text is in the fixture '{fixture}'"
        if not signature.match(fixture):
            return f"the pattern does not match the fixture '{fixture}'"
    return None
