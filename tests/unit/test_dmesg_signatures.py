"""Protects the signatures: each is a line that a kernel really prints, and its pattern finds that line.

The chain is source file, format, fixture, pattern. Its first link is tested for each kernel whose source is at hand.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kbuild.dmesg import signatures
from kbuild.dmesg.classify import candidates
from kbuild.dmesg.record import Record
from kbuild.dmesg.signatures import Printk, Severity, Signature
from kbuild.errors import UserError
from kbuild.outcome import Status

ALL = signatures.load().signatures
PRINTKS = [pytest.param(s, p, id=f"{s.id}-{number}") for s in ALL for number, p in enumerate(s.printk)]

_CONVERSION = re.compile(r"%[-#0+ ]*\d*(?:\.\d+)?(?:hh|ll|[hlLzt])?(?P<kind>p[A-Za-z]?|[a-zA-Z])")
_VALUES = {"d": r"-?\d+", "u": r"\d+", "x": r"[0-9a-f]+", "s": r".*?"}


def as_pattern(printk_format: str) -> re.Pattern[str]:
    """A printk format as a pattern for what it can print (Documentation/core-api/printk-formats.rst, 6.1)."""
    parts: list[str] = []
    at = 0
    for conversion in _CONVERSION.finditer(printk_format):
        parts.append(re.escape(printk_format[at : conversion.start()]))
        parts.append(_VALUES.get(conversion["kind"], ".+?"))
        at = conversion.end()
    return re.compile("".join(parts) + re.escape(printk_format[at:]))


@pytest.mark.parametrize("signature", ALL, ids=lambda s: s.id)
def test_every_signature_says_where_it_is_printed(signature: Signature) -> None:
    assert signature.printk
    assert signature.meaning


@pytest.mark.parametrize(("signature", "printk"), PRINTKS)
def test_a_fixture_is_what_the_format_prints(signature: Signature, printk: Printk) -> None:
    pattern = as_pattern(printk.format)
    assert any(pattern.search(fixture) for fixture in signature.fixtures)


@pytest.mark.parametrize(("signature", "printk"), PRINTKS)
def test_the_format_is_in_the_source(signature: Signature, printk: Printk, kernel_sources: dict[str, Path]) -> None:
    claimed = {v: source for v, source in kernel_sources.items() if v in printk.kernels and v in signature.kernels}
    if not claimed:
        pytest.skip(f"kernels {printk.kernels}: no source of these at hand without --all-kernels")
    for version, source in claimed.items():
        text = (source / printk.source).read_text()
        joined = re.sub(r'"[\s\\]*"', "", text)  # a literal may go on in the next line, in a macro too
        assert printk.format in joined, f"{version}, {printk.source}"


@pytest.mark.parametrize("signature", ALL, ids=lambda s: s.id)
def test_fixtures_are_found_as_this_signature(signature: Signature) -> None:
    """Not by one that is before it in the file."""
    for fixture in signature.fixtures:
        found = candidates([Record(None, None, 3, fixture)], ALL)[0]
        assert next(s.id for s in found if s.match(fixture)) == signature.id


def test_owners_are_functions_of_kvm_and_their_objects_caches(kernel_sources: dict[str, Path]) -> None:
    for version, source in kernel_sources.items():
        folders = (source / "arch/x86/kvm", source / "virt/kvm")
        text = "".join(path.read_text() for folder in folders for path in sorted(folder.rglob("*.c")))
        for name, function in signatures.load().owners.items():
            assert re.search(rf'kmem_cache_create\w*\(\s*"{name}"|KMEM_CACHE\({name},', text), f"{version}: {name}"
            assert re.search(rf"^[a-z][\w *]*\b{function}\([^;\n]*$", text, re.MULTILINE), f"{version}: {function}"


def test_ids_are_what_orders_may_name() -> None:
    ids = signatures.load().ids
    assert {"vendor-already-loaded", "vendor-not-supported", signatures.UNKNOWN_ERROR} <= ids


@pytest.mark.parametrize(
    ("severity", "emulated", "status"),
    [
        (Severity.CRASH, True, Status.FAIL),
        (Severity.FAIL, True, Status.FAIL),
        (Severity.STALL, True, Status.ERROR),
        (Severity.STALL, False, Status.FAIL),
        (Severity.UNKNOWN, True, Status.ERROR),
        (Severity.ENVIRONMENT, False, Status.ERROR),
        (Severity.INFO, False, None),
    ],
)
def test_how_severities_count(severity: Severity, emulated: bool, status: Status | None) -> None:
    assert severity.status(emulated=emulated) is status


GOOD = """\
[[signature]]
id = "one"
text = ["some text"]
meaning = "a meaning"
severity = "fail"
fixtures = ["a line with some text"]
"""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"fail"', '"bad"', "5: signature[0].severity: invalid enum value 'bad'"),
        ('["some text"]', "[]", "2: signature 'one': text: at least one literal"),
        ('["a line with some text"]', '["another"]', "2: signature 'one': no text is in the fixture 'another'"),
        ('"fail"', '"fail"\npattern = "("', "2: signature 'one': pattern: missing )"),
        ('"fail"', '"fail"\npattern = "^some"', "2: signature 'one': the pattern does not match the fixture"),
        ('"fail"', '"fail"\ntitle = "{what}"', "2: signature 'one': title: the pattern has no group 'what'"),
        ('"fail"', '"fail"\ninside = ["two"]', "signature 'one': inside: there is no signature 'two'"),
        ('"one"', '"unknown-error"', "2: signature 'unknown-error': id 'unknown-error' is there twice"),
        ("meaning", "means", "4: signature[0].means: no such key"),
    ],
)
def test_a_file_that_is_not_sound_is_refused(tmp_path: Path, old: str, new: str, expected: str) -> None:
    path = tmp_path / "signatures.toml"
    path.write_text(GOOD)
    assert [s.id for s in signatures.load(path).signatures] == ["one"]
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        signatures.load(path)
    assert "\n" not in str(error.value)
