"""A run or series in a format for somebody else, on standard output or in a file; each is loaded when asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from kbuild.errors import UserError
from kbuild.paths import write_output
from kbuild.record import Record
from kbuild.seriesrecord import SeriesRecord

Format = Literal["text", "html", "junit", "ktap", "kcidb"]
FORMATS: tuple[Format, ...] = get_args(Format)
CompareFormat = Literal["text", "html"]
COMPARE_FORMATS: tuple[CompareFormat, ...] = get_args(CompareFormat)


def read_format(name: str, option: str) -> Format:
    """A format by its name. Raises UserError for any other word."""
    for known in FORMATS:
        if name == known:
            return known
    raise UserError(f"{option} {name}: no such format; one of {', '.join(FORMATS)}")


def read_reports(asked: tuple[str, ...]) -> list[tuple[Format, Path]]:
    """What `--report FORMAT=FILE` asks for. Raises UserError where that cannot be done."""
    found = []
    for one in asked:
        name, equals, file = one.partition("=")
        if not equals or not file:
            raise UserError(f"--report {one}: write FORMAT=FILE, such as html=gate.html")
        path = Path(file).expanduser()
        if not path.parent.is_dir():
            raise UserError(f"--report {one}: there is no folder {path.parent}")
        found.append((read_format(name, "--report"), path))
    return found


def render_as(
    form: Format, record: Record, folder: Path, origin: str | None = None, against: tuple[Path, Record] | None = None
) -> str:
    """The whole report. `folder`: of the run; `origin`: as KCIDB knows whoever sends it.

    `against`: of a page, another run whose sizes are held against this one's.
    """
    match form:
        case "text":
            from kbuild.report.text import render_text

            return render_text(record, folder)
        case "html":
            from kbuild.report.html.page import render_html

            return render_html(record, folder, against)
        case "junit":
            from kbuild.report.junit import render_junit

            return render_junit(record)
        case "ktap":
            from kbuild.report.ktap import render_ktap

            return render_ktap(record)
        case "kcidb":
            from kbuild.report.kcidb import ORIGIN, render_kcidb

            return render_kcidb(record, folder, origin or ORIGIN)


def render_series_as(form: Format, series: SeriesRecord, origin: str | None = None) -> str:
    """The whole report of a series, made of its record and those of its runs."""
    match form:
        case "text":
            from kbuild.report.seriestext import render_series_text

            return render_series_text(series)
        case "html":
            from kbuild.report.html.series import render_series_html

            return render_series_html(series)
        case "junit":
            from kbuild.report.seriesci import render_series_junit

            return render_series_junit(series)
        case "ktap":
            from kbuild.report.seriesci import render_series_ktap

            return render_series_ktap(series)
        case "kcidb":
            from kbuild.report.kcidb import ORIGIN
            from kbuild.report.seriesci import render_series_kcidb

            return render_series_kcidb(series, origin or ORIGIN)


def read_compare_format(name: str, option: str) -> CompareFormat:
    """The formats that there are of two runs. Raises UserError for any other."""
    for known in COMPARE_FORMATS:
        if name == known:
            return known
    raise UserError(f"{option} {name}: two runs are written as {' or '.join(COMPARE_FORMATS)}")


def render_compare_as(
    form: CompareFormat,
    found: Mapping[str, Any],
    flow: Mapping[str, Any],
    runs: Sequence[tuple[Path, Record]],
    command: str,
) -> str:
    """The whole report of two runs. `found`: as `inv compare --json` has it; `flow`: `kbuild.detail.look_at_both`."""
    if form == "text":
        from kbuild.report.comparetext import render_compare_text

        return render_compare_text(found, runs, command)
    from kbuild.report.html.compare import render_compare_html

    return render_compare_html(found, flow, runs, command)


def write(text: str, target: str | None) -> None:
    """On standard output, or into a file, which is whole or not there.

    Raises UserError where there is no such folder, HarnessError where it cannot be written.
    """
    if target is None or target == "-":
        # A terminal's or locale's encoding is not the format's.
        sys.stdout.buffer.write(text.encode())
        return
    path = Path(target).expanduser()
    if not path.parent.is_dir():
        raise UserError(f"--output {target}: there is no folder {path.parent}")
    write_output(path, text)
