"""What a series was tested with, as a paragraph for its cover letter: true to the word, from the record alone."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from kbuild.barrecord import NOT_TRIED, TRIED, BarRecord, Host, Met, Patch, Point, least_asked, short
from kbuild.cpus import Cpus
from kbuild.report import clean

WIDTH = 72
_TOLD = ("parameters", "selftests", "kvm-unit-tests", "htmldocs")
_KINDS_TOLD = ("area:", "flavour:")
"""Points that are a sentence of their own where they are met."""
_WHERE = {
    Cpus.OWN: "on machines of their own, reached by SSH",
    Cpus.NESTED: "in QEMU with KVM, on the CPU that it ran on",
    Cpus.EMULATED: "in emulators, on no hardware",
}
_VENDORS = {"intel": "Intel", "amd": "AMD"}


def letter(record: BarRecord) -> str:
    """Some paragraphs, wrapped at 72 columns; what is not met comes first, for it is not to be sent like this."""
    parts = [*_not_met(record), _built(record), _loaded(record), *_told(record), *_left(record)]
    return "\n\n".join(
        textwrap.fill(clean.visible(" ".join(part.split())), WIDTH, break_long_words=False, break_on_hyphens=False)
        for part in parts
        if part
    )


def _not_met(record: BarRecord) -> Iterator[str]:
    for point in record.points:
        if point.outcome == Met.NOT_MET:
            who = ", ".join(_named(record, one) for one in point.patches)
            yield f"NOT MET: {point.title}{f': {who}' if who else f' ({point.why})' if point.why else ''}."


def _named(record: BarRecord, patch: str) -> str:
    numbers = {one.id: number for number, one in enumerate(_own(record), 1)}
    subject = next((one.subject for one in record.patches if one.id == patch), "")
    return f'patch {numbers.get(patch, "?")}, {short(patch)} ("{subject}")'


def _own(record: BarRecord) -> list[Patch]:
    return [one for one in record.patches if not one.base]


def _point(record: BarRecord, name: str) -> Point | None:
    return next((one for one in record.points if one.id == name), None)


def _built(record: BarRecord) -> str:
    """Base, compilers, and what every patch builds in."""
    base = next(one for one in record.patches if one.base)
    own = _own(record)
    count = "The patch" if len(own) == 1 else f"Each of the {len(own)} patches"
    kernel = f"Linux {record.kernel}, " if record.kernel else ""
    said = f'Based on {kernel}{short(base.id)} ("{base.subject}").'
    least = _point(record, "build")
    if least is not None and least.outcome == Met.MET:
        said += f" {count} builds without a warning in KVM as {least_asked()} with gcc."
    right = [one for one in record.points if one.id.startswith("build:") and one.outcome == Met.MET]
    if right:
        named: dict[str, list[str]] = {}
        for one in right:
            build, _, compiler = one.id.removeprefix("build:").rpartition("-")
            named.setdefault(record.titles.get(build, build), []).append(compiler)
        listed = "; ".join(f"{title} ({' and '.join(some)})" for title, some in named.items())
        # A configuration of the user's may do without.
        ids = {one.id for one in right}
        made = [one for one in record.builds if f"build:{one.build}-{one.compiler}" in ids and one.patch != base.id]
        strict = all(one.values.get("KVM_WERROR") == "y" for one in made)
        said += f" {count}'s KVM objects build {'so, too, with KVM_WERROR=y' if strict else 'as well'}: {listed}."
        said = said.replace("patches's", "patches'")
    tools = "; ".join(record.tools[name] for name in ("gcc", "clang", "ld") if name in record.tools)
    return f"{said} Compilers and linker: {tools}." if tools else said


def _loaded(record: BarRecord) -> str:
    """Hosts, and what was loaded on them."""
    if not record.hosts:
        return ""
    said = "Loaded"
    for kind, where in _WHERE.items():
        if mine := [one for one in record.hosts if one.cpus_are is kind]:
            said += f"{'' if said == 'Loaded' else ';'} {where}: {' and '.join(map(_host, mine))}"
    said += "."
    orders = ", ".join(f"{one.passed} of {one.orders} on {one.id}" for one in record.hosts)
    said += f" Load orders that passed with the last patch: {orders}."
    return said


def _host(one: Host) -> str:
    """A host, without a word of where it is."""
    what = f"{one.emulator}, CPU {one.cpu}: " if one.cpus_are is not Cpus.OWN else ""
    return f"{one.id} ({what}{_gives(one)})"


def _gives(one: Host) -> str:
    """What its CPU gives. Of a machine of its own its file need not name all that there is."""
    vendor = next((name for key, name in _VENDORS.items() if key in one.gives), "")
    feature = next((word.upper() for word in ("vmx", "svm") if word in one.gives), None)
    if feature is None:
        return f"{vendor}, without virtualization"
    paging = next((f" with {word.upper()}" for word in ("ept", "npt") if word in one.gives), None)
    without = "" if one.cpus_are is Cpus.OWN else " without two-dimensional paging"
    return f"{vendor}, {feature}{without if paging is None else paging}"


def _told(record: BarRecord) -> Iterator[str]:
    """Further points that were tested and are met, each a sentence."""
    said = []
    for point in record.points:
        tried = [line for line in point.lines if line.startswith(TRIED)]
        if point.outcome != Met.MET and not (tried and point.outcome == Met.NOT_TESTED):
            continue
        if point.id.startswith(_KINDS_TOLD) or point.id in _TOLD:
            said.append(f"{_capital(point.title)}: {'; '.join([point.why, *tried])}.")
        said += [f"{_capital(line)}." for line in point.lines if line.startswith("the base has it too")]
    if said:
        yield " ".join(said)


def _left(record: BarRecord) -> Iterator[str]:
    """What was not tested, and why."""
    told = []
    for point in record.points:
        if point.outcome == Met.NOT_TESTED:
            # Where some of it was tried, only the rest was not.
            rest = [line.removeprefix(NOT_TRIED) for line in point.lines if line.startswith(NOT_TRIED)]
            why = f" ({point.why})" if point.why else ""
            if rest and any(line.startswith(TRIED) for line in point.lines):
                why = ""  # which is told above, with what was tried
            told.append(f"parameters {rest[0]}{why}" if rest else f"{point.title}{why}")
    told += _not_real(record)
    if told:
        yield f"Not tested: {'; '.join(told)}."


def _not_real(record: BarRecord) -> Iterator[str]:
    """The vendors on whose hardware nothing passed, as far as anybody here can tell."""
    real = [one for one in record.hosts if one.cpus_are is Cpus.OWN and one.passed]
    missing = [name for vendor, name in _VENDORS.items() if not any(vendor in one.gives for one in real)]
    if missing:
        yield "real hardware" if not real else f"real hardware of {' and '.join(missing)}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
