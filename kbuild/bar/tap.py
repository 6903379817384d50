"""TAP, as kvm-unit-tests' `run_tests.sh -t` prints it (scripts/runtime.bash there): one line for each test."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kbuild.barrecord import shown

_PLAN = re.compile(r"1\.\.(\d+)\b")
# A name may have a # in it (#GP, #UD): only the word behind it makes it a directive.
_TEST = re.compile(
    r"(?P<not>not )?ok\b(?:\s+(?P<number>\d+))?(?:\s+-)?\s*(?P<name>.*?)"
    r"(?:\s+#\s*(?P<directive>skip|todo)\w*\b(?:.*))?$",
    re.IGNORECASE,
)
_BAIL = re.compile(r"Bail out!\s*(.*)")


@dataclass(frozen=True)
class Tap:
    """What a stream of TAP says."""

    passed: tuple[str, ...]
    failed: tuple[str, ...]
    skipped: tuple[str, ...]
    planned: int | None
    """How many it said that there would be."""
    bailed: str | None = None

    @property
    def missing(self) -> int:
        """Tests that were planned and of which nothing came."""
        seen = len(self.passed) + len(self.failed) + len(self.skipped)
        return max(0, (self.planned or 0) - seen)


def read_tap(lines: Iterable[str]) -> Tap:
    """Read TAP of version 12 and 13. What is no TAP, and what is indented, is passed over: diagnostics and subtests."""
    passed: list[str] = []
    failed: list[str] = []
    skipped: list[str] = []
    planned, bailed = None, None
    for line in lines:
        line = shown(line.rstrip())
        if (plan := _PLAN.match(line)) and planned is None:
            planned = int(plan[1])
        elif bail := _BAIL.match(line):
            bailed = bail[1]
        elif test := _TEST.match(line):
            name = test["name"] or f"test {test['number'] or len(passed) + len(failed) + len(skipped) + 1}"
            directive = (test["directive"] or "").lower()
            # What was skipped says nothing, and what fails as it is still to be made (todo) is no failure and no pass.
            if directive == "skip" or (test["not"] and directive):
                skipped.append(name)
            elif test["not"]:
                failed.append(name)
            else:
                passed.append(name)
    return Tap(tuple(passed), tuple(failed), tuple(skipped), planned, bailed)
