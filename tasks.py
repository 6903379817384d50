"""The command line: parse, call the library, render, exit. No logic, and nothing heavy until a task runs."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

if TYPE_CHECKING:
    from kbuild.gate import GateRequest
    from kbuild.record import Run

TREE = {
    "tree": "kernel source: debian:6.1, debian:6.1=VERSION, a folder or a git checkout",
    "rev": "a commit of the git checkout; without it, the folder as it is",
    "profile": "a name in profiles/, or the path of a .toml file",
    "refresh": "ask Debian's archive for a newer version of debian:X.Y",
}
VERBOSE = {
    "verbose": "log each stage and what it took to standard error; everything is in the run's log.jsonl",
    "quiet": "no progress, errors only",
}
JSON = {"json": "one JSON object on standard output"}


def _run(work: Callable[[], int]) -> NoReturn:
    """Run a task's work and exit with its status; each error that is the user's or the machine's is one line."""
    from kbuild.errors import KbuildError, UserError
    from kbuild.outcome import EXIT_INTERRUPTED, EXIT_USER_ERROR, exit_status

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    # A service manager or CI that ends us must not leave emulators and half a record behind either.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    try:
        raise Exit(code=work())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise Exit(code=EXIT_INTERRUPTED) from None
    except UserError as error:
        print(error, file=sys.stderr)
        raise Exit(code=EXIT_USER_ERROR) from None
    except KbuildError as error:
        print(f"{error.status}: {error}", file=sys.stderr)
        raise Exit(code=exit_status(error.status)) from None
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing more can be said to him.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Exit(code=EXIT_INTERRUPTED) from None


def _command() -> str:
    """This command, as it can be pasted into a shell."""
    from kbuild.paths import PROJECT

    return shlex.join([str(PROJECT / "scripts/inv"), *sys.argv[1:]])


def _request(**options: Any) -> GateRequest:
    from kbuild.gate import GateRequest

    return GateRequest(command=_command(), **options)


def _verbosity(verbose: bool, quiet: bool) -> int:
    return -1 if quiet else 1 if verbose else 0


@contextmanager
def _reporter(quiet: bool) -> Iterator[Any]:
    from kbuild.progress import Silent
    from kbuild.report.live import live

    if quiet:
        yield Silent()
    else:
        with live() as reporter:
            yield reporter


def _finish(run: Run, as_json: bool) -> int:
    """Show a run's end, and say its exit status."""
    from kbuild.outcome import Status, exit_status, to_json
    from kbuild.report.data import summary
    from kbuild.report.terminal import render

    if as_json:
        sys.stdout.buffer.write(to_json(summary(run.record)) + b"\n")
    else:
        render(run.record)
    return exit_status(run.record.verdict or Status.ERROR)


def _judge(task_name: str, *, verbose: bool, quiet: bool, as_json: bool, **options: Any) -> NoReturn:
    """The tasks that make a run."""

    def work() -> int:
        from kbuild.gate import gate

        with _reporter(quiet) as reporter:
            run = gate(_request(task=task_name, verbosity=_verbosity(verbose, quiet), **options), reporter)
        return _finish(run, as_json)

    _run(work)


@task(help={**TREE, **VERBOSE, **JSON})
def configure(
    ctx: Context,
    tree: str = "debian:6.1",
    rev: str | None = None,
    profile: str = "default",
    refresh: bool = False,
    verbose: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Write .config; name each requested symbol that did not take effect, and why."""
    _judge(
        "configure", tree=tree, rev=rev, profile=profile, refresh=refresh, verbose=verbose, quiet=quiet, as_json=json
    )


@task(help={**TREE, **JSON, "symbol": "with or without CONFIG_"})
def explain(
    ctx: Context,
    symbol: str,
    tree: str = "debian:6.1",
    rev: str | None = None,
    profile: str = "default",
    refresh: bool = False,
    json: bool = False,
) -> None:
    """Say why a symbol has its value, what blocks it, and where it is defined."""

    def work() -> int:
        from kbuild.gate import explain_symbol
        from kbuild.outcome import to_json
        from kbuild.report.explanation import render

        explanation = explain_symbol(symbol, tree, rev, profile, refresh=refresh)
        if json:
            sys.stdout.buffer.write(to_json(explanation) + b"\n")
        else:
            render(explanation)
        return 0

    _run(work)


@task(help={**TREE, **VERBOSE, **JSON})
def build(
    ctx: Context,
    tree: str = "debian:6.1",
    rev: str | None = None,
    profile: str = "default",
    refresh: bool = False,
    verbose: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Configure and build the kernel and its modules."""
    _judge("build", tree=tree, rev=rev, profile=profile, refresh=refresh, verbose=verbose, quiet=quiet, as_json=json)


ARTIFACTS = {
    "modules": "a folder with .ko files (.xz, .zst, .gz too)",
    "kernel": "the bzImage that they belong to",
}


@task(help={**ARTIFACTS, **JSON})
def inspect(ctx: Context, modules: str, kernel: str | None = None, json: bool = False) -> None:
    """Read the modules of a folder: sections, symbols, who provides each import; needs no build and no tree."""

    def work() -> int:
        from kbuild.gate import inspect_folder
        from kbuild.outcome import exit_status, to_json
        from kbuild.report.modules import render

        data = inspect_folder(modules, kernel)
        if json:
            sys.stdout.buffer.write(to_json(data) + b"\n")
        else:
            render(data)
        return exit_status(data["verdict"])

    _run(work)


LOADING = {
    "order": "only these load orders: names in profiles/orders/ or paths of .toml files (may be repeated)",
    "host": "only these hosts: names in profiles/hosts/ or paths of .toml files (may be repeated)",
    "no_known": "count known findings too",
}


@task(iterable=["order", "host"], help={**ARTIFACTS, **LOADING, "profile": TREE["profile"], **VERBOSE, **JSON})
def load(
    ctx: Context,
    modules: str,
    kernel: str,
    order: list[str],
    host: list[str],
    profile: str = "default",
    no_known: bool = False,
    verbose: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Load the modules of a folder with a kernel, in the profile's orders on its hosts."""
    _judge(
        "load",
        modules=modules,
        kernel=kernel,
        orders=tuple(order),
        hosts=tuple(host),
        profile=profile,
        no_known=no_known,
        verbose=verbose,
        quiet=quiet,
        as_json=json,
    )


@task(iterable=["order", "host"], help={**TREE, **LOADING, **VERBOSE, **JSON})
def gate(
    ctx: Context,
    order: list[str],
    host: list[str],
    tree: str = "debian:6.1",
    rev: str | None = None,
    profile: str = "default",
    refresh: bool = False,
    no_known: bool = False,
    verbose: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Build, inspect and load the KVM modules of one tree, and give one verdict."""
    _judge(
        "gate",
        tree=tree,
        rev=rev,
        profile=profile,
        refresh=refresh,
        orders=tuple(order),
        hosts=tuple(host),
        no_known=no_known,
        verbose=verbose,
        quiet=quiet,
        as_json=json,
    )


@task(help={"run": "the run's id or the beginning of it, its folder, or 'latest'", **JSON})
def report(ctx: Context, run: str, json: bool = False) -> None:
    """Show a run's record again; the exit status is the run's verdict."""

    def work() -> int:
        from kbuild.outcome import Status, exit_status, to_json
        from kbuild.record import read_record
        from kbuild.report.data import summary
        from kbuild.report.terminal import render

        record = read_record(run)
        if json:
            sys.stdout.buffer.write(to_json(summary(record)) + b"\n")
        else:
            render(record)
        return exit_status(record.verdict or Status.ERROR)

    _run(work)


# For whoever works on this tool.


def _tools(*commands: list[str]) -> NoReturn:
    """Run programs of the environment in the project's folder; their own words are enough."""

    def work() -> int:
        import subprocess

        from kbuild.outcome import Status, exit_status
        from kbuild.paths import PROJECT

        # Not handed on: a test runner's 1 is the tool's failure, and the contract's 1 is not ours to give.
        failed = [argv for argv in commands if subprocess.run([sys.executable, "-m", *argv], cwd=PROJECT).returncode]
        return exit_status(Status.FAIL if failed else Status.PASS)

    _run(work)


@task(help={"only": "a pytest expression (-k): only these tests", "unit": "only the fast ones, without emulators"})
def test(ctx: Context, only: str | None = None, unit: bool = False) -> None:
    """Lint, then run all tests, among them one real gate of 6.1 on both vendors."""
    folder = "tests/unit" if unit else "tests"
    selection = ["-k", only] if only else []
    _tools(*_LINTERS, ["pytest", folder, *selection])


_LINTERS = (["ruff", "check", "--quiet"], ["ruff", "format", "--check", "--quiet"], ["mypy"])


@task
def lint(ctx: Context) -> None:
    """Check formatting, rules and types."""
    _tools(*_LINTERS)


@task(help=JSON)
def bench(ctx: Context, json: bool = False) -> None:
    """Measure the gate and the command line against doing it by hand, as ratios taken in one run."""

    def work() -> int:
        import subprocess

        from kbuild.outcome import Status, exit_status
        from kbuild.paths import PROJECT

        failed = subprocess.run([sys.executable, str(PROJECT / "scripts/bench"), *["--json"] * json]).returncode
        return exit_status(Status.ERROR if failed else Status.DONE)

    _run(work)


@task(help={"runs": "the records of all runs too"})
def clean(ctx: Context, runs: bool = False) -> None:
    """Remove everything that can be made again: trees, builds, artifacts, boot images."""

    def work() -> int:
        import shutil

        from kbuild.paths import cache_home
        from kbuild.record import runs_home

        for folder in [cache_home(), *([runs_home()] if runs else [])]:
            shutil.rmtree(folder, ignore_errors=True)
            print(f"removed {folder}")
        return 0

    _run(work)
