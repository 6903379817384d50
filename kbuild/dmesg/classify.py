"""From records to matches: one pass, in time that grows with the log's size alone.

Regular expressions are slow on a million lines; a search for a literal is not. So each signature's literals are
searched in large pieces of the log at once, and its pattern is tried only on the lines where one was found.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from kbuild.dmesg.record import Record
from kbuild.dmesg.signatures import FUNCTION, UNKNOWN_ERROR, Severity, Signature, Signatures

ERROR_LEVEL = 3
"""KERN_ERR (include/linux/kern_levels.h); a lower number is worse."""

MAX_REPORT = 500
"""Records of one report; a longer one is cut and says so."""
MAX_SAME = 20
"""Records that a match names when the same line comes again and again; the rest is counted."""
MAX_SAME_REPORTS = 5
"""Reports of the same title in a step that are told; the last of them counts the rest."""
MAX_DIFFERENT = 1000
"""Different lines of a signature in a step that are told; the last of them counts the rest."""
MAX_FUNCTIONS = 64
PIECE = 1 << 20
"""Characters that are searched at once."""

_FUNCTION = r"(?P<function>[A-Za-z_][\w.]*)\+0x[0-9a-f]+/0x[0-9a-f]+"
_RIP = re.compile(r"^RIP: 0010:" + _FUNCTION, re.MULTILINE)
_FRAME = re.compile(r"^ +" + _FUNCTION, re.MULTILINE)  # not `? name`: that the unwinder does not vouch for
_COMPILER_SUFFIX = re.compile(r"\.(?:constprop|isra|part|cold|llvm|lto_priv)\b.*")
_CUT_HERE = "cut-here"
_AFTER_REPORT = "panic-after-report"
# Frames of what prints a stack, which is not where it happened.
_PRINTERS = frozenset(
    {"dump_stack", "dump_stack_lvl", "show_stack", "panic", "vpanic", "check_panic_on_warn", "__warn"}
)
_NOTHING = re.compile(r"[\s=*-]*")

# What differs from one run to the next (addresses, process ids, CPU numbers, times, offsets), and what stands for it.
_UNSTABLE = (
    (re.compile(r"\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[\w+\])?"), ""),
    (re.compile(r"(?:0x)?\((?:____)?ptrval(?:____)?\)"), "ADDRESS"),
    (re.compile(r"\b0x[0-9a-fA-F]+\b|\b[0-9a-f]{12,16}\b|\b(?=\d*[a-f])(?=[a-f]*\d)[0-9a-f]{8,11}\b"), "ADDRESS"),
    (re.compile(r"\[#\d+\]"), "[#N]"),
    (re.compile(r"\b(pid|tgid|task)([ :=#-]*)\d+", re.IGNORECASE), r"\1\2N"),
    (re.compile(r"\b(cpu)([ :=#-]*)\d+", re.IGNORECASE), r"\1\2N"),
    (re.compile(r"(?<=\w)([/\[:])\d+(?=\]|$|:)"), r"\1N"),
    (re.compile(r"\b\d+\.\d+(?= ?(?:s|ms|us|seconds)\b)|\b\d+(?= ?(?:s|ms|us|ns|seconds|jiffies)\b)"), "N"),
    (re.compile(r"\b\d{5,}\b"), "N"),
)


class Match(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A signature that occurred, with its records."""

    signature: str
    severity: Severity
    title: str
    """The same in every run for the same cause: no address, process id, CPU, time or offset in it."""
    meaning: str
    records: tuple[int, ...]
    """Indexes into what was classified: of a report all that belong to it, in order."""
    count: int = 1
    """How often it came during the step, where not each time is in `records` or a match of its own."""
    functions: tuple[str, ...] = ()
    """Of a report: where it happened, then its callers."""
    truncated: bool = False
    """The report is cut off: its end did not come."""
    follower: bool = False
    """A crash came before it in the same boot: it may be its consequence, and does not count by itself."""
    seconds: int | None = None
    """Of a stall: for how long, as the kernel says."""
    kills: bool = False
    """It says why a process was killed, or the kernel gave up."""
    owner: str | None = None
    """The function whose part it was to remove what stayed behind."""
    step: int | None = None
    boot: bool = False
    """It was said before the first step: about the machine, not about an order."""


def classify(records: Sequence[Record], signatures: Signatures, kernel: str) -> list[Match]:
    """All matches in the order in which they began. `kernel` is the version, such as `6.1.192`.

    Records of user space (`facility`) are passed over. The records are taken as one or more whole boots in order.
    """
    return _Classifier(records, signatures, kernel).run()


def stable(text: str) -> str:
    """`text` without what differs from run to run."""
    for pattern, replacement in _UNSTABLE:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


@dataclasses.dataclass
class _Report:
    """A report that is being read."""

    signature: Signature
    found: re.Match[str]
    records: list[int]
    in_stack: bool = False
    saw_registers: bool = False
    ended: bool = False
    panicked: bool = False
    truncated: bool = False


@dataclasses.dataclass
class _Found:
    """A match that may still come again."""

    match: Match
    count: int = 1
    more: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Seen:
    """What lines of one signature came in one step."""

    by_text: dict[str, _Found] = dataclasses.field(default_factory=dict)
    by_title: dict[str, _Found] = dataclasses.field(default_factory=dict)
    latest: _Found | None = None


class _Classifier:
    def __init__(self, records: Sequence[Record], signatures: Signatures, kernel: str) -> None:
        self._records = records
        self._signatures = signatures
        self._candidates = candidates(records, signatures.for_kernel(kernel))
        self._open: dict[str | None, _Report] = {}
        """By caller: two of them may print their reports at once."""
        self._found: list[_Found] = []
        self._seen: dict[tuple[str, int | None], _Seen] = {}
        self._reports: dict[tuple[str, str, int | None], list[_Found]] = {}
        self._last_report: _Report | None = None
        self._first_step = next((i for i, r in enumerate(records) if r.step is not None), len(records))

    def run(self) -> list[Match]:
        """Go through the records that matter."""
        for index, record in enumerate(self._records):
            level = record.level
            if not (self._open or index in self._candidates or (level is not None and level <= ERROR_LEVEL)):
                if record.text.startswith("Linux version "):
                    self._new_boot()
                continue
            if record.facility == 0:
                if record.text.startswith("Linux version "):
                    self._new_boot()
                self._take(index, record)
        self._new_boot()
        matches = sorted(map(self._finished, self._found), key=lambda match: match.records[0])
        return _mark_followers(matches, self._records)

    def _new_boot(self) -> None:
        for caller in list(self._open):
            self._close(caller)
        self._last_report = None

    def _take(self, index: int, record: Record) -> None:
        signature, found = self._recognize(index, record)
        report = self._open.get(record.caller)
        if report and record.step != self._records[report.records[0]].step:
            self._close(record.caller)
            report = None
        elif report and signature and signature.report and not self._continues(report, signature):
            # A report about a slab cache, say, may go over into a WARN before a stack of its own came.
            report.ended = report.signature.report == "stack"
            self._close(record.caller)
            report = None
        if report:
            self._continue(report, index, record, signature, found)
        elif signature and found and signature.report:
            self._begin(index, record, signature, found)
        elif signature and found:
            self._single(index, signature, found)
        elif record.level is not None and record.level <= ERROR_LEVEL and not _NOTHING.fullmatch(record.text):
            self._single(index, None, None)

    def _recognize(self, index: int, record: Record) -> tuple[Signature, re.Match[str]] | tuple[None, None]:
        for signature in self._candidates.get(index, ()):
            if found := signature.match(record.text):
                return signature, found
        return None, None

    def _begin(self, index: int, record: Record, signature: Signature, found: re.Match[str]) -> None:
        if signature.report == "panic" and (before := self._last_report) and signature.id == _AFTER_REPORT:
            # The report that made it panic is complete; what follows is only the end of it.
            before.panicked = True
            self._open[record.caller] = _Report(signature, found, [index], panicked=True)
            return
        self._open[record.caller] = _Report(signature, found, [index])

    def _continues(self, report: _Report, signature: Signature) -> bool:
        """Whether a line that could begin a report belongs to the one that is being read."""
        if signature.report == "panic":
            return True
        if signature.id == _CUT_HERE or report.panicked:
            return report.panicked
        return not report.in_stack and not report.saw_registers and report.signature.report != "stack"

    def _continue(
        self, report: _Report, index: int, record: Record, signature: Signature | None, found: re.Match[str] | None
    ) -> None:
        report.records.append(index)
        if signature and found:
            names_it_better = report.signature.id in signature.inside
            if names_it_better or (report.signature.id == _CUT_HERE and signature.report):
                report.signature, report.found = signature, found
            elif signature.report == "panic":
                report.panicked = True
            elif not signature.report and signature.severity is not Severity.INFO and not signature.inside:
                self._single(index, signature, found)
        text = record.text
        report.saw_registers = report.saw_registers or text.startswith("RIP: ")
        report.in_stack = report.in_stack or text.startswith("Call Trace:")
        if report.panicked or report.signature.report == "panic":
            if text.startswith("---[ end Kernel panic"):
                report.ended = True
        elif text.startswith("---[ end trace ") or (
            _is_end(text, _kind_of_end(report)) and (report.in_stack or _kind_of_end(report) == "separator")
        ):
            report.ended = True
        elif len(report.records) >= MAX_REPORT:
            report.truncated = report.ended = True
        if report.ended:
            self._close(record.caller)

    def _close(self, caller: str | None) -> None:
        """End a report, by its own end or because nothing more of it can come."""
        report = self._open.pop(caller)
        if report.panicked and report.signature.id == _AFTER_REPORT:
            return  # the end of a report that has its own match
        functions = _functions(self._records[i].text for i in report.records)
        truncated = report.truncated or report.signature.id in (_CUT_HERE, _AFTER_REPORT) or self._has_gap(report)
        if not report.ended and not report.panicked and report.signature.report != "panic":
            truncated = True
        self._last_report = report
        self._report(self._match(report.signature, report.found, tuple(report.records), functions, truncated=truncated))

    def _has_gap(self, report: _Report) -> bool:
        """Whether records are missing from its midst, by their sequence numbers."""
        first, last = report.records[0], report.records[-1]
        begin, end = self._records[first].seq, self._records[last].seq
        return begin is not None and end is not None and end - begin != last - first

    def _single(self, index: int, signature: Signature | None, found: re.Match[str] | None) -> None:
        """A line that is a match by itself. The same one again in its step is counted, not told again."""
        record = self._records[index]
        group = (signature.id if signature else UNKNOWN_ERROR, record.step)
        seen = self._seen.setdefault(group, _Seen())
        match = seen.by_text.get(record.text)
        if match is None and len(seen.by_text) >= MAX_DIFFERENT:
            match = seen.latest
        if match is None:
            new = self._match(signature, found, (index,)) if signature and found else self._unknown(index)
            match = seen.by_title.get(new.title)
            if match is None:
                match = seen.by_title[new.title] = _Found(new, count=0)
                self._found.append(match)
            seen.by_text[record.text] = seen.latest = match
        match.count += 1
        if 1 < match.count <= MAX_SAME:
            match.more.append(index)

    def _unknown(self, index: int) -> Match:
        return Match(
            signature=UNKNOWN_ERROR,
            severity=Severity.UNKNOWN,
            title=stable(self._records[index].text),
            meaning="an error that no signature knows",
            records=(index,),
        )

    def _report(self, match: Match) -> None:
        """A report. Of the same one again and again in its step the first few are told, the rest is counted."""
        same = self._reports.setdefault((match.signature, match.title, self._records[match.records[0]].step), [])
        if len(same) < MAX_SAME_REPORTS:
            same.append(_Found(match))
            self._found.append(same[-1])
        else:
            same[-1].count += 1

    def _finished(self, found: _Found) -> Match:
        first = found.match.records[0]
        return msgspec.structs.replace(
            found.match,
            records=(*found.match.records, *found.more),
            count=found.count,
            step=self._records[first].step,
            boot=first < self._first_step,
        )

    def _match(
        self,
        signature: Signature,
        found: re.Match[str],
        records: tuple[int, ...],
        functions: tuple[str, ...] = (),
        truncated: bool = False,
    ) -> Match:
        groups = {name: value or "" for name, value in found.groupdict().items()}
        named = _bare(groups.get(FUNCTION, ""))
        if signature.report == "separator" and named:
            # The frames above it are those of who found it out: print_report(), kasan_report().
            functions = functions[functions.index(named) :] if named in functions else (named,)
        function = functions[0] if functions else named or "an unknown function"
        title = signature.title or found.string[found.string.rfind("\n", 0, found.start()) + 1 :].split("\n", 1)[0]
        if signature.title:
            title = re.sub(r"\{(\w+)\}", lambda name: {**groups, FUNCTION: function}[name[1]], title)
        return Match(
            signature=signature.id,
            severity=signature.severity,
            title=stable(title),
            meaning=signature.meaning,
            records=records,
            functions=functions,
            truncated=truncated,
            seconds=int(groups["seconds"]) if groups.get("seconds") else None,
            kills=signature.kills,
            owner=self._signatures.owners.get(groups.get("object", "")),
        )


def candidates(records: Sequence[Record], signatures: Sequence[Signature]) -> dict[int, list[Signature]]:
    """For each record that has a signature's literal: those signatures, in their order."""
    by_literal: dict[str, list[int]] = {}
    for number, signature in enumerate(signatures):
        for literal in signature.text:
            by_literal.setdefault(literal, []).append(number)
    found: dict[int, set[int]] = {}
    for offset, piece, starts in _pieces(records):
        for literal, numbers in by_literal.items():
            at = piece.find(literal)
            while at >= 0:
                local = bisect.bisect_right(starts, at) - 1
                found.setdefault(offset + local, set()).update(numbers)
                at = piece.find(literal, starts[local + 1]) if local + 1 < len(starts) else -1
    return {index: [signatures[number] for number in sorted(numbers)] for index, numbers in found.items()}


def _pieces(records: Sequence[Record]) -> Iterator[tuple[int, str, list[int]]]:
    """The log in pieces: the first record's index, the text, and where each record begins in it."""
    offset, texts, starts, size = 0, [], [], 0
    for index, record in enumerate(records):
        starts.append(size)
        texts.append(record.text)
        size += len(record.text) + 1
        if size >= PIECE:
            yield offset, "\n".join(texts), starts
            offset, texts, starts, size = index + 1, [], [], 0
    if texts:
        yield offset, "\n".join(texts), starts


def _kind_of_end(report: _Report) -> str:
    # The message of a WARN ends as the WARN does.
    return report.signature.report or "trace"


def _is_end(text: str, kind: str) -> bool:
    if kind == "stack":
        return text.strip() == "</TASK>"
    return kind == "separator" and len(text) > 20 and not text.strip("=")


def _functions(texts: Iterable[str]) -> tuple[str, ...]:
    """The function at the instruction pointer, then the frames of the first stack."""
    at: str | None = None
    frames: list[str] = []
    in_stack = past = False
    for text in texts:
        if at is None and not past and (rip := _RIP.search(text)):
            at = _bare(rip[FUNCTION])
        if text.startswith("Call Trace:"):
            in_stack = not past
        elif in_stack and text.strip() == "</TASK>":
            in_stack, past = False, True
        elif in_stack and (frame := _FRAME.match(text)):
            frames.append(_bare(frame[FUNCTION]))
    while not at and frames and frames[0] in _PRINTERS:
        frames.pop(0)
    return tuple(([at] if at else []) + frames)[:MAX_FUNCTIONS]


def _bare(function: str) -> str:
    """A function's name as in the source, without what the compiler added to it."""
    return _COMPILER_SUFFIX.sub("", function)


def _mark_followers(matches: list[Match], records: Sequence[Record]) -> list[Match]:
    """Everything that counts and begins after a crash of the same boot is marked."""
    boots = [index for index, record in enumerate(records) if record.text.startswith("Linux version ")]
    marked: list[Match] = []
    crashed_in: int | None = None
    for match in matches:
        boot = bisect.bisect_right(boots, match.records[0])
        if crashed_in == boot and match.severity is not Severity.INFO:
            match = msgspec.structs.replace(match, follower=True)
        elif match.severity is Severity.CRASH:
            crashed_in = boot
        marked.append(match)
    return marked
