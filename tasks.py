"""The command line: parse, call the library, render, exit. No logic, and nothing heavy until a task runs."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import Task
from invoke.tasks import task as invoke_task

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kbuild.barrecord import BarRecord
    from kbuild.gate.request import GateRequest
    from kbuild.record import Record, Run
    from kbuild.report.write import CompareFormat, Format

SHORT = {"verbose", "quiet"}


class _Task(Task):  # type: ignore[type-arg]
    """A task whose options have long names only, but for -v and -q: `-h` must go on to mean help."""

    def arg_opts(self, name: str, default: str, taken_names: set[str]) -> dict[str, Any]:
        """What Invoke's parser is told of an option."""
        options = super().arg_opts(name, default, taken_names)
        if name not in SHORT:
            options["names"] = options["names"][:1]
        return options


def task(**options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Invoke's decorator, for such tasks."""
    decorator: Callable[[Callable[..., None]], Callable[..., None]] = invoke_task(klass=_Task, **options)
    return decorator


TREE = {
    "tree": "kernel source: debian:6.1, debian:6.1=VERSION, a folder or a git checkout",
    "rev": "a commit of the git checkout; without it, the folder as it is",
    "profile": "a name in profiles/, or the path of a .toml file",
    "flavour": "another kernel of the profile: debug, fault, kasan, server, smp and trace of the default one",
    "refresh": "ask Debian's archive for a newer version of debian:X.Y",
}
PROFILE = {option: TREE[option] for option in ("profile", "flavour")}
PATCH = {"patch": "a patch to judge the tree with, a diff or mail; the tree itself stays as it is (may be repeated)"}
VERBOSE = {
    "verbose": "log each stage and what it took to standard error; everything is in the run's log.jsonl",
    "quiet": "no progress, errors only",
}
JSON = {"json": "one JSON object on standard output"}
REPORT = {"report": "also write FORMAT=FILE at the end: html, text, junit, ktap, kcidb (may be repeated)"}


def _run(work: Callable[[], int], interrupted: str = "interrupted") -> NoReturn:
    """Run a task's work and exit with its status; each error that is the user's or the machine's is one line.

    `interrupted`: what is said after Ctrl-C.
    """
    from kbuild.errors import KbuildError, UserError, os_errors
    from kbuild.outcome import EXIT_INTERRUPTED, EXIT_USER_ERROR, exit_status

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    # A service manager or CI that ends us must not leave emulators and half a record behind either. Under nohup(1) a
    # logout is no reason to end.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is not signal.SIG_IGN:
            signal.signal(ending, stop)
    try:
        # What names no file is what we print: every file of ours is named where it is written.
        with os_errors("the output cannot be written"):
            code = work()
            sys.stdout.flush()
        raise Exit(code=code)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        raise Exit(code=EXIT_INTERRUPTED) from None
    except UserError as error:
        print(error, file=sys.stderr)
        raise Exit(code=EXIT_USER_ERROR) from None
    except KbuildError as error:
        with suppress(OSError):
            print(f"{error.status}: {error}", file=sys.stderr)
        _forget_output()
        raise Exit(code=exit_status(error.status)) from None
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing more can be said to him.
        _forget_output()
        raise Exit(code=EXIT_INTERRUPTED) from None


def _forget_output() -> None:
    """Standard output goes nowhere from here on, if it takes no more: the interpreter would fail at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _positional(value: str, name: str) -> None:
    """Invoke takes whatever comes for a task's argument, an option too."""
    from kbuild.errors import UserError

    if value.startswith("-"):
        raise UserError(f"{name}: '{value}' is no argument; for help write: inv --help {name}")


def _command() -> str:
    """This command, as it can be pasted into a shell."""
    from kbuild.paths import PROJECT

    return shlex.join([str(PROJECT / "scripts/inv"), *_words()])


def _words() -> list[str]:
    """The command line that scripts/inv, or Invoke, was given."""
    words = sys.argv[1:]
    if "--search-root" in words:
        # What scripts/inv put before the words that it was given.
        words = words[words.index("--search-root") + 2 :]
    return words


def _request(**options: Any) -> GateRequest:
    from kbuild.gate.request import GateRequest

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


def _finish(run: Run, as_json: bool, reports: Sequence[tuple[Format, Path]]) -> int:
    """Show a run's end, write the reports that were asked for, and say its exit status."""
    from kbuild.outcome import Status, exit_status, to_json
    from kbuild.report.data import summary
    from kbuild.report.terminal import render

    if as_json:
        sys.stdout.buffer.write(to_json(summary(run.record)) + b"\n")
    else:
        render(run.record)
    if reports:
        from kbuild.report.write import write

        for form, path in reports:
            write(_report(form, run.record, run.folder), str(path))
    return exit_status(run.record.verdict or Status.ERROR)


def _judge(name: str, *, ctx: Context, verbose: bool, quiet: bool, json: bool, **options: Any) -> NoReturn:
    """The tasks that make a run: what Invoke gave them goes on as it is, by the name of the option.

    What was not given comes from Invoke's configuration.
    """
    for key in ("tree", "profile"):
        options[key] = options.get(key) or ctx.kbuild[key]
    for one, several in (("order", "orders"), ("host", "hosts"), ("patch", "patches"), ("rules", "rules")):
        if one in options:
            options[several] = tuple(options.pop(one))
    for option, field in (("from_", "first"), ("to", "last"), ("only", "site")):
        if option in options:
            options[field] = options.pop(option)
    options["cache_gb"] = ctx.kbuild.cache_gb
    asked = tuple(options.pop("report", ()))

    def work() -> int:
        from kbuild.gate.judging import gate
        from kbuild.report.write import read_reports

        reports = read_reports(asked)
        with _reporter(quiet) as reporter:
            run = gate(_request(task=name, verbosity=_verbosity(verbose, quiet), **options), reporter)
        return _finish(run, json, reports)

    _run(work)


@task(iterable=["patch"], help={**TREE, **PATCH, **VERBOSE, **JSON})
def configure(
    ctx: Context,
    patch: list[str],
    tree: str | None = None,
    rev: str | None = None,
    profile: str | None = None,
    flavour: str | None = None,
    refresh: bool = False,
    verbose: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Write .config; name each requested symbol that did not take effect, and why.

    Examples:
      inv configure
      inv configure --tree ~/linux --flavour debug
      inv configure --tree debian:6.12 --json
    """
    _judge("configure", **locals())


@task(help={**TREE, **JSON, "symbol": "with or without CONFIG_"})
def explain(
    ctx: Context,
    symbol: str,
    tree: str | None = None,
    rev: str | None = None,
    profile: str | None = None,
    flavour: str | None = None,
    refresh: bool = False,
    json: bool = False,
) -> None:
    """Say why a symbol has its value, what blocks it, and where it is defined.

    Examples:
      inv explain KVM_XEN
      inv explain CONFIG_KVM_AMD_SEV --tree ~/linux
      inv explain PROVE_LOCKING --flavour debug
    """

    def work() -> int:
        from kbuild.gate.wanted import explain_symbol
        from kbuild.outcome import to_json
        from kbuild.report.explanation import render

        _positional(symbol, "explain")
        explanation = explain_symbol(
            symbol, tree or ctx.kbuild.tree, rev, profile or ctx.kbuild.profile, flavour, refresh=refresh
        )
        if json:
            sys.stdout.buffer.write(to_json(explanation) + b"\n")
        else:
            render(explanation)
        return 0

    _run(work)


@task(iterable=["patch"], help={**TREE, **PATCH, **VERBOSE, **JSON})
def build(
    ctx: Context,
    patch: list[str],
    tree: str | None = None,
    rev: str | None = None,
    profile: str | None = None,
    flavour: str | None = None,
    refresh: bool = False,
    verbose: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Configure and build the kernel and its modules.

    Examples:
      inv build
      inv build --tree ~/linux --rev HEAD~2
      inv build --patch 0001-KVM-x86-mmu.patch --flavour kasan
    """
    _judge("build", **locals())


ARTIFACTS = {
    "modules": "a folder with .ko files (.xz, .zst, .gz too)",
    "kernel": "the bzImage that they belong to",
}


INSPECTING = {
    "rules": "a rule file, or the name of one in profiles/rules/, to be answered (may be repeated)",
    "against": "a folder with these modules as they were before: say what differs",
    "hazards": "also list what init code writes after it can have been read, what matters most first",
    "layout": "show what is large in each module, and which functions could be __init",
    "struct": "show size and members of a struct or union, from BTF or DWARF (may be repeated)",
    "flow": "show what each module's init and exit call, as a tree folded to what the rules mention, or what leads on",
    "full": "show all calls (with --flow)",
    "dot": "write the calls as a graph for Graphviz into this file; - is standard output",
}


@task(positional=[], iterable=["rules", "struct"], help={**ARTIFACTS, **INSPECTING, **JSON})
def inspect(
    ctx: Context,
    modules: str | None = None,
    kernel: str | None = None,
    rules: list[str] | None = None,
    against: str | None = None,
    hazards: bool = False,
    layout: bool = False,
    struct: list[str] | None = None,
    flow: bool = False,
    full: bool = False,
    dot: str | None = None,
    json: bool = False,
) -> None:
    """Read the modules of a folder: sections, symbols, who provides each import; answer rules over their init code.

    Examples:
      inv inspect --modules ~/linux/arch/x86/kvm
      inv inspect --modules DIR --kernel BZIMAGE --rules kvm
      inv inspect --modules NEW --against OLD --hazards
      inv inspect --modules DIR --flow --full
      inv inspect --modules DIR --layout --struct kvm_vcpu
    """

    def work() -> int:
        from kbuild.elf.folder import Wanted, inspect_folder
        from kbuild.errors import UserError
        from kbuild.outcome import exit_status, to_json
        from kbuild.report.modules import prepare, render

        if modules is None:
            raise UserError("inspect: give --modules FOLDER, and --kernel BZIMAGE where it is at hand")
        if dot == "-" and json:
            raise UserError("inspect: --json and --dot - both write to standard output: give --dot a file")
        tree = flow or full
        wanted = Wanted(
            rules=tuple(rules or ()),
            against=against,
            hazards=hazards,
            layout=layout or json,
            structs=tuple(struct or ()),
            flow=tree or dot is not None or (json and bool(rules)),
        )
        data = inspect_folder(modules, kernel, wanted, prepare)
        if dot is not None:
            from kbuild.report.dot import write_dot

            write_dot(data["flow"], dot)
        if json:
            sys.stdout.buffer.write(to_json(data) + b"\n")
        elif dot != "-":
            render(data, flow=tree, full=full, by_rules=bool(rules))
        return exit_status(data["verdict"])

    _run(work)


LOADING = {
    "order": "only these load orders: names or globs in profiles/orders/, ORDER@RUN, all, or paths (may be repeated)",
    "host": "only these hosts: names or globs in profiles/hosts/, all, or paths of .toml files (may be repeated)",
    "no_known": "count known findings too",
    "cluster": "load on the workers of this Dask scheduler, tcp://HOST:PORT, in place of this machine (see inv worker)",
}
ONE_RUN = {
    **LOADING,
    "from_": "of orders that let allocations fail, the first one that is tried: 17, or page-3",
    "to": "the last one",
    "only": "only allocations at this call site, as kvm_init/misc_register, or a glob",
    "selftests": "a folder of KVM's selftests, built with USERLDFLAGS=-static, for orders that run some",
    "look": "read the host's state after each step: what it changed is shown by: inv report latest --looks",
}


def _question(ctx: Context, **options: Any) -> Callable[[], GateRequest]:
    """What to ask of each commit: a gate's options, as Invoke gave them."""

    def question() -> GateRequest:
        return _request(
            task="gate",
            tree=options["tree"] or ctx.kbuild.tree,
            rev=options.get("rev"),
            profile=options["profile"] or ctx.kbuild.profile,
            flavour=options["flavour"],
            refresh=options.get("refresh", False),
            orders=tuple(options["order"]),
            hosts=tuple(options["host"]),
            rules=tuple(options["rules"]),
            no_known=options["no_known"],
            cluster=options["cluster"],
            cache_gb=ctx.kbuild.cache_gb,
            verbosity=_verbosity(options["verbose"], options["quiet"]),
        )

    return question


GOES_ON = "interrupted: the same command goes on behind the last commit that was judged"
SERIES = {
    "range": "BASE..TIP of the checkout: each commit is judged against the one before it",
    "mbox": "patches as a mailing list has them, on their base-commit, --rev or HEAD of the checkout",
    "packages": "kernel packages of Debian's archive, a glob such as 'linux-image-6.12.*-amd64'",
    "stop": "end at the first commit that is to blame for a FAIL",
    "rules": "only these rule files: names in profiles/rules/ or paths (may be repeated)",
    "rev": "where the patches of --mbox go, in place of their base-commit",
}


@task(iterable=["order", "host", "rules", "report"], help={**TREE, **LOADING, **REPORT, **VERBOSE, **JSON, **SERIES})
def series(
    ctx: Context,
    order: list[str],
    host: list[str],
    rules: list[str],
    report: list[str],
    tree: str | None = None,
    range: str | None = None,  # noqa: A002
    mbox: str | None = None,
    packages: str | None = None,
    rev: str | None = None,
    profile: str | None = None,
    flavour: str | None = None,
    stop: bool = False,
    no_known: bool = False,
    cluster: str | None = None,
    refresh: bool = False,
    verbose: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Judge each commit of a range or mbox, or each version of a package, and say which one is to blame for what.

    Examples:
      inv series --tree ~/linux --range v6.1..HEAD
      inv series --tree ~/linux --mbox thread.mbox --rules mmu-setup-thread --stop
      inv series --packages 'linux-image-6.12.*-amd64' --order vendor-alone
      inv series --tree ~/linux --range origin/next..HEAD --report html=series.html
    """
    question = _question(**locals())

    def work() -> int:
        from kbuild.outcome import Status, exit_status, to_json
        from kbuild.report.series import render, teller
        from kbuild.report.write import read_reports, render_series_as, write
        from kbuild.series.ask import SeriesRequest
        from kbuild.series.ask import series as judge

        reports = read_reports(tuple(report))
        asked = SeriesRequest(gate=question(), range=range, mbox=mbox, packages=packages, stop=stop)
        with _reporter(quiet) as reporter:
            record = judge(asked, reporter, teller(quiet))
        if json:
            sys.stdout.buffer.write(to_json(record) + b"\n")
        else:
            render(record)
        for form, path in reports:
            write(render_series_as(form, record), str(path))
        return exit_status(record.verdict or Status.ERROR)

    _run(work, GOES_ON)


BAR = {
    **{option: SERIES[option] for option in ("range", "mbox", "rev", "rules")},
    "order": "for each patch only these load orders, in place of the profile's and of those for what is touched",
    "profile": "a profile that has a [bar]: a name in profiles/, or the path of a .toml file (kvm-x86)",
    "kvm_unit_tests": "a checkout of kvm-unit-tests, to be run where this machine has /dev/kvm and runs the kernel",
}


@task(iterable=["order", "host", "rules"], help={"tree": TREE["tree"], **LOADING, **VERBOSE, **JSON, **BAR})
def bar(
    ctx: Context,
    order: list[str],
    host: list[str],
    rules: list[str],
    tree: str | None = None,
    range: str | None = None,  # noqa: A002
    mbox: str | None = None,
    rev: str | None = None,
    profile: str | None = None,
    kvm_unit_tests: str | None = None,
    no_known: bool = False,
    cluster: str | None = None,
    verbose: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Hold a series against what the KVM x86 maintainers ask for, and write the paragraph for its cover letter.

    Examples:
      inv bar --tree ~/linux --range kvm-x86/next..HEAD
      inv bar --tree ~/linux --mbox thread.mbox --rules mmu-setup-thread
      inv bar --tree ~/linux --range HEAD~3..HEAD --kvm-unit-tests ~/kvm-unit-tests
    """
    options = {**locals(), "profile": profile or "kvm-x86", "flavour": None}
    question = _question(**options)

    def work() -> int:
        from kbuild.bar.ask import BarRequest
        from kbuild.bar.ask import bar as hold
        from kbuild.report.bar import Teller

        asked = BarRequest(gate=question(), range=range, mbox=mbox, unit_tests=kvm_unit_tests)
        with _reporter(quiet) as reporter:
            record = hold(asked, reporter, Teller(quiet))
        return _show_bar(record, json)

    _run(work, "interrupted: the same command goes on where this one was")


def _show_bar(record: BarRecord, as_json: bool) -> int:
    """The page of inv bar, from its record."""
    from kbuild.outcome import Status, exit_status, to_json
    from kbuild.report.bar import data, render

    if as_json:
        sys.stdout.buffer.write(to_json(data(record)) + b"\n")
    else:
        render(record)
    return exit_status(record.verdict or Status.ERROR)


BISECT = {
    "good": "a commit that does not have the finding",
    "bad": "a later one that has it",
    "finding": "its id, or a glob of ids; without it, whatever counts in the bad commit and not in the good one",
    "tree": "a git checkout; it is only read",
    "rules": SERIES["rules"],
}


@task(iterable=["order", "host", "rules"], help={**PROFILE, **LOADING, **VERBOSE, **JSON, **BISECT})
def bisect(
    ctx: Context,
    order: list[str],
    host: list[str],
    rules: list[str],
    good: str | None = None,
    bad: str | None = None,
    finding: str | None = None,
    tree: str | None = None,
    profile: str | None = None,
    flavour: str | None = None,
    no_known: bool = False,
    cluster: str | None = None,
    verbose: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Find the commit at which a finding appears, with git's bisect; what does not build is skipped.

    Examples:
      inv bisect --tree ~/linux --good v6.1 --bad HEAD
      inv bisect --tree ~/linux --good HEAD~9 --bad HEAD --finding 'load:leftover:*'
      inv bisect --tree ~/linux --good HEAD~9 --bad HEAD --order vendor-alone --host qemu-svm
    """
    question = _question(**locals())

    def work() -> int:
        from kbuild.errors import UserError
        from kbuild.outcome import Status, exit_status, to_json
        from kbuild.report.series import render, teller
        from kbuild.series.bisect import BisectRequest
        from kbuild.series.bisect import bisect as search

        if good is None or bad is None:
            raise UserError("bisect: give --good COMMIT and --bad COMMIT, and --finding ID where one is looked for")
        asked = BisectRequest(gate=question(), good=good, bad=bad, finding=finding)
        with _reporter(quiet) as reporter:
            record, first = search(asked, reporter, teller(quiet))
        if json:
            sys.stdout.buffer.write(to_json({"series": record, "first_bad": first}) + b"\n")
        else:
            render(record)
            what = (
                f"first bad commit: {first.id} {first.subject}"
                if first
                else "the commits that are left cannot be told apart"
            )
            print(what)
        return exit_status(Status.DONE if first else Status.ERROR)

    _run(work, GOES_ON)


@task(
    iterable=["order", "host", "report"],
    help={**ARTIFACTS, **ONE_RUN, **PROFILE, **REPORT, **VERBOSE, **JSON},
)
def load(
    ctx: Context,
    order: list[str],
    host: list[str],
    report: list[str],
    modules: str | None = None,
    kernel: str | None = None,
    profile: str | None = None,
    flavour: str | None = None,
    from_: str | None = None,
    to: str | None = None,
    only: str | None = None,
    selftests: str | None = None,
    look: bool = False,
    no_known: bool = False,
    cluster: str | None = None,
    verbose: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Load the modules of a folder with a kernel, in the profile's orders on its hosts.

    Examples:
      inv load --modules DIR --kernel BZIMAGE
      inv load --modules DIR --kernel BZIMAGE --order vendor-alone --host qemu-svm
      inv load --modules DIR --kernel BZIMAGE --order all --host 'bochs-*'
      inv load --modules DIR --kernel BZIMAGE --order tdp-off --look
    """
    _judge("load", **locals())


WORKER = {
    "scheduler": "the cluster's address, as dask scheduler prints it",
    "cpus": "of this machine, for so many cells at once; without it, all",
    "network": "a lab's network that this machine is in: it runs the SSH hosts whose files name it (may be repeated)",
    "name": "what the cluster calls it; without it, its address",
}


@task(iterable=["network"], help=WORKER)
def worker(ctx: Context, scheduler: str, network: list[str], cpus: str | None = None, name: str | None = None) -> None:
    """Let this machine load for gates that are started elsewhere with --cluster, until Ctrl-C.

    Examples:
      inv worker tcp://scheduler.lab:8786
      inv worker tcp://scheduler.lab:8786 --cpus 8 --network lab-a
    """

    def work() -> int:
        from kbuild.cluster.worker import become_worker

        _positional(scheduler, "worker")
        become_worker(scheduler, cpus, network, name)

    _run(work)


RULES = {"rules": "only these rules: names in profiles/rules/ or paths of .toml files (may be repeated)"}
BASELINE = {"baseline": "a run, or a file of inv runs --baseline: what it has is not counted, what it judged has to be"}
WATCH = {"watch": "again on each save of a source file below arch/x86/kvm or virt/kvm of --tree, until Ctrl-C"}
PACKAGE = {"package": "in place of a tree, a kernel package of Debian's archive: linux-image-…-amd64, or NAME=VERSION"}


@task(
    iterable=["patch", "order", "host", "rules", "report"],
    help={
        **TREE,
        **PATCH,
        **PACKAGE,
        **ARTIFACTS,
        **ONE_RUN,
        **RULES,
        **BASELINE,
        **WATCH,
        **REPORT,
        **VERBOSE,
        **JSON,
    },
)
def gate(
    ctx: Context,
    patch: list[str],
    order: list[str],
    host: list[str],
    rules: list[str],
    report: list[str],
    package: str | None = None,
    modules: str | None = None,
    kernel: str | None = None,
    tree: str | None = None,
    rev: str | None = None,
    profile: str | None = None,
    flavour: str | None = None,
    refresh: bool = False,
    from_: str | None = None,
    to: str | None = None,
    only: str | None = None,
    selftests: str | None = None,
    look: bool = False,
    no_known: bool = False,
    cluster: str | None = None,
    baseline: str | None = None,
    watch: bool = False,
    verbose: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Build, inspect and load the KVM modules of one tree, or judge shipped files, and give one verdict.

    Examples:
      inv gate
      inv gate --tree ~/linux --watch --order vendor-alone --host qemu-svm
      inv gate --tree ~/linux --rev HEAD~2 --flavour debug
      inv gate --patch 0001-KVM-x86-mmu.patch --report html=gate.html
      inv gate --package linux-image-6.1.0-56-amd64
      inv gate --modules DIR --kernel BZIMAGE --json
      inv gate --profile release --baseline baseline.json
      inv gate --cluster tcp://scheduler.lab:8786
    """
    options = locals()
    if options.pop("watch"):
        _watch(tree or ctx.kbuild.tree, [name for name in ("rev", "package", "modules", "kernel") if options[name]])
    _judge("gate", **options)


def _watch(tree: str, others: list[str]) -> NoReturn:
    """The same gate without --watch, again and again."""

    def work() -> int:
        from kbuild.errors import UserError
        from kbuild.paths import PROJECT
        from kbuild.watch import watch

        if others:
            raise UserError(f"--watch: nothing is edited that --{others[0]} names: give --tree alone")
        words = [word for word in _words() if word != "--watch"]
        watch(tree, [PROJECT / "scripts/inv", *words], lambda line: print(line, file=sys.stderr, flush=True))
        return 0

    _run(work)


REPORTING = {
    "run": "the run's id or the beginning of it, its folder, or 'latest'; or the id of a series",
    "trace": "show what was called in its traces, as a tree with times",
    "looks": "show what each step changed of the host's state, where it was looked at (load --look)",
    "format": "text (for a reply on a mailing list), html (one page), junit, ktap or kcidb, in place of the terminal's",
    "output": "write it into this file; without it, or with -, to standard output",
    "origin": "with --format kcidb: the name that KCIDB has given you",
    "against": "with --format html: another run; what has another size in it is shown",
}


@task(help={**REPORTING, **JSON})
def report(
    ctx: Context,
    run: str,
    format: str | None = None,  # noqa: A002
    output: str | None = None,
    origin: str | None = None,
    against: str | None = None,
    trace: bool = False,
    looks: bool = False,
    json: bool = False,
) -> None:
    """Show a run's or series' record again, or write a run for somebody else; the exit status is its verdict.

    Examples:
      inv report latest
      inv report latest --format text
      inv report 20261130 --format html --output gate.html
      inv report latest --format html --against 20261129-212205 --output gate.html
      inv report latest --trace
      inv report 20261130-044915-8c5f-series --format html --output series.html
    """

    def work() -> int:
        from kbuild.barrecord import is_bar, read_bar
        from kbuild.errors import UserError
        from kbuild.outcome import Status, exit_status, to_json
        from kbuild.record import open_record
        from kbuild.report.data import summary
        from kbuild.report.series import render as render_series
        from kbuild.report.terminal import render
        from kbuild.seriesrecord import is_series, read_series

        _positional(run, "report")
        if sum((format is not None, trace, looks, json)) > 1:
            raise UserError("report: --format, --trace, --looks and --json are ways to show it: give one")
        if format is None and (output is not None or origin is not None):
            raise UserError("report: --output and --origin need a --format")
        if against is not None and (format != "html" or is_series(run)):
            raise UserError("report: --against is for the page of a run: --format html; for all else: inv compare")
        if is_bar(run):
            if format is not None or trace or looks:
                raise UserError(f"report: {run} is of inv bar: it is shown as a page, or with --json")
            return _show_bar(read_bar(run), json)
        if is_series(run):
            if trace or looks:
                raise UserError(f"report: {run} is a series: --trace and --looks are of one run; its table names them")
            whole = read_series(run)
            if format is not None:
                from kbuild.report.write import read_format, render_series_as, write

                write(render_series_as(read_format(format, "--format"), whole, origin), output)
            elif json:
                sys.stdout.buffer.write(to_json(whole) + b"\n")
            else:
                render_series(whole)
            return exit_status(whole.verdict or Status.ERROR)
        folder, record = open_record(run)
        if format is not None:
            from kbuild.report.write import read_format, write

            other = open_record(against) if against is not None else None
            write(_report(read_format(format, "--format"), record, folder, origin, other), output)
        elif json:
            sys.stdout.buffer.write(to_json(summary(record)) + b"\n")
        elif trace:
            from kbuild.report.trace import render_traces

            render_traces(record)
        elif looks:
            from kbuild.report.looks import render_looks

            render_looks(record)
        else:
            render(record)
        return exit_status(record.verdict or Status.ERROR)

    _run(work)


FINDING_RUNS = {
    "tree": "only runs of such a tree: a glob for what was asked for, or for its identity",
    "verdict": "only runs that ended so: FAIL, ERROR, MISS, PASS, DONE, SKIP",
    "since": "only runs that began since: 14d, 12h, or a day such as 2026-11-29",
    "finding": "the history of findings with such an id, and the runs that have one; * and ? stand for anything",
    "all_": "show every run, not only the newest",
    "baseline": "print this run as a baseline for gate --baseline, to be kept in a file, in place of a list",
}


@task(help={**FINDING_RUNS, **JSON})
def runs(
    ctx: Context,
    tree: str | None = None,
    verdict: str | None = None,
    since: str | None = None,
    finding: str | None = None,
    all_: bool = False,
    baseline: str | None = None,
    json: bool = False,
) -> None:
    """List the runs on record, newest first; with a finding, since when it is there, how often and where.

    Examples:
      inv runs
      inv runs --verdict FAIL --since 14d
      inv runs --finding '*l1d-flush*'
      inv runs --baseline latest
    """

    def work() -> int:
        if baseline is not None:
            from kbuild.runs.baseline import baseline_of

            sys.stdout.buffer.write(baseline_of(baseline))
            return 0
        from kbuild.outcome import to_json
        from kbuild.report.runs import render
        from kbuild.runs.listing import Filter, list_runs

        data = list_runs(Filter(tree, verdict, since, finding))
        if json:
            sys.stdout.buffer.write(to_json(data) + b"\n")
        else:
            render(data, in_full=all_)
        return 0

    _run(work)


COMPARING = {
    "before": "a run: its id or the beginning of it, its folder, or 'latest'",
    "after": "another one, which may be of any other kernel",
    "report": "also write FORMAT=FILE: html (one page, both side by side) or text (for a mail) (may be repeated)",
    "format": "html or text, in place of the terminal's",
    "output": REPORTING["output"],
}


@task(iterable=["report"], help={**COMPARING, **JSON})
def compare(
    ctx: Context,
    before: str,
    after: str,
    report: list[str],
    format: str | None = None,  # noqa: A002
    output: str | None = None,
    json: bool = False,
) -> None:
    """Say what differs between two runs; the exit status is 0 where nothing got worse.

    Examples:
      inv compare 20261129-212205 latest
      inv compare baseline.json latest --json
      inv compare RUN RUN --format html --output both.html
    """

    def work() -> int:
        from kbuild.errors import UserError
        from kbuild.outcome import exit_status, to_json
        from kbuild.report.compare import render
        from kbuild.report.write import read_compare_format, read_reports, write
        from kbuild.runs.compare import compare_runs

        for run in (before, after):
            _positional(run, "compare")
        if format is not None and json:
            raise UserError("compare: --format and --json are ways to show it: give one")
        if format is None and output is not None:
            raise UserError("compare: --output needs a --format")
        wanted = [(read_compare_format(form, "--report"), str(path)) for form, path in read_reports(tuple(report))]
        shown = read_compare_format(format, "--format") if format is not None else None
        data = compare_runs(before, after)
        if shown is not None:
            write(_comparison(shown, data, before, after), output)
        elif json:
            sys.stdout.buffer.write(to_json(data) + b"\n")
        else:
            render(data)
        for form, path in wanted:
            write(_comparison(form, data, before, after), path)
        return exit_status(data["status"])

    _run(work)


def _comparison(form: CompareFormat, data: dict[str, Any], before: str, after: str) -> str:
    """Two runs in a format; a page shows what both call, which is looked at now."""
    from kbuild.detail import look_at_both
    from kbuild.record import open_record
    from kbuild.report.write import render_compare_as

    runs = open_record(before), open_record(after)
    rules = [one["rule"] for one in data["rules"]]
    flow = look_at_both(*runs, rules) if form == "html" else {"flow": None, "why": None}
    return render_compare_as(form, data, flow, runs, _command())


def _report(
    form: Format, record: Record, folder: Path, origin: str | None = None, against: tuple[Path, Record] | None = None
) -> str:
    """A report in a format; a page shows more of the modules than a record has, which is looked at now."""
    from kbuild.report.write import render_as

    if form == "html":
        from kbuild.detail import look_closer

        look_closer(folder, record)
        if against is not None:
            look_closer(*against)
    return render_as(form, record, folder, origin, against)


# Hosts.

HOSTS = {"host": "a name in profiles/hosts/, the path of a .toml file, or a glob; absent: all (may be repeated)"}


@task(name="list", iterable=["host"], help={**HOSTS, **JSON})
def host_list(ctx: Context, host: list[str], json: bool = False) -> None:
    """List the host files that there are, and what each host gives.

    Examples:
        inv host.list
        inv host.list --host 'bochs-*' --json
    """
    _hosts(host, asked=False, json=json)


@task(name="check", iterable=["host"], help={**HOSTS, **JSON})
def host_check(ctx: Context, host: list[str], json: bool = False) -> None:
    """Ask each host what it can be used for, and what is missing for more. Nothing is changed there.

    The exit status is 3 where a host cannot be used.

    Examples:
        inv host.check
        inv host.check --host lab/epyc-1.toml
    """
    _hosts(host, asked=True, json=json)


def _hosts(names: list[str], *, asked: bool, json: bool) -> NoReturn:
    def work() -> int:
        from kbuild import log
        from kbuild.hosts.survey import hosts_named, list_hosts, survey_hosts
        from kbuild.outcome import Status, exit_status, to_json
        from kbuild.report.hosts import render

        log.configure()
        found = hosts_named(names)
        data = survey_hosts(found) if asked else list_hosts(found)
        if json:
            sys.stdout.buffer.write(to_json(data) + b"\n")
        else:
            render(data)
        return exit_status(Status.MISS if any(one.get("hindrances") for one in data["hosts"]) else Status.DONE)

    _run(work)


@task(
    name="restore",
    positional=["host"],
    help={"host": "a host that is reached by SSH: its name or file", "force": "also where somebody else has taken it"},
)
def host_restore(ctx: Context, host: str, force: bool = False) -> None:
    """Put a host back as it was before a run that could not do so itself.

    Examples:
        inv host.restore lab/epyc-1.toml
        inv host.restore lab/epyc-1.toml --force
    """

    def work() -> int:
        from kbuild import log
        from kbuild.hosts.survey import restore_host

        _positional(host, "host.restore")
        log.configure(1)
        print(restore_host(host, force=force))
        return 0

    _run(work)


PROVISIONING = {
    "target": "whom ssh is to reach, with root's rights: root@HOST, or a user with --sudo",
    "key": "the public key that may log in as the new user, such as ~/.ssh/id_ed25519.pub",
    "user": "the new user's name; absent: kvm-kbuild",
    "ssh": "more words for ssh, such as '-F FILE' (may be repeated)",
    "sudo": "become root by sudo -n",
    "netconsole": "IP:PORT of who listens to its kernel's log",
    "ramoops": "keep a MiB of memory for its kernel's last words",
    "check": "change nothing, and say what would be done: the exit status is 3 where something would",
    "undo": "take back what an earlier run has done",
}


@task(name="provision", positional=["target"], iterable=["ssh"], help=PROVISIONING)
def host_provision(
    ctx: Context,
    target: str,
    ssh: list[str],
    key: str | None = None,
    user: str | None = None,
    sudo: bool = False,
    netconsole: str | None = None,
    ramoops: bool = False,
    check: bool = False,
    undo: bool = False,
) -> None:
    """Make a Debian machine a test host: packages, a user who may do one thing, kernel settings. Can be undone.

    Examples:
        inv host.provision root@epyc-1.lab --key ~/.ssh/id_ed25519.pub --check
        inv host.provision root@epyc-1.lab --key ~/.ssh/id_ed25519.pub --ramoops
        inv host.provision root@epyc-1.lab --undo
    """

    def work() -> int:
        from pathlib import Path

        from kbuild import log
        from kbuild.errors import UserError
        from kbuild.hosts.survey import provision_host
        from kbuild.outcome import Status, exit_status

        _positional(target, "host.provision")
        log.configure()
        if key is None and not undo:
            raise UserError("host.provision: give --key FILE, the public key that may log in (or --undo)")
        given = {"user": user, "netconsole": netconsole}
        words = [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
        words += [f"--{name}" for name, wanted in {"ramoops": ramoops, "check": check, "undo": undo}.items() if wanted]
        path = None if key is None else Path(key)
        done = provision_host(target, tuple(shlex.split(" ".join(ssh))), words, path, sudo=sudo)
        return exit_status(Status.DONE if done else Status.MISS)

    _run(work)


# For whoever works on this tool.


def _tools(*commands: list[str]) -> NoReturn:
    """Run programs of the environment in the project's folder; their own words are enough."""

    def work() -> int:
        import subprocess

        from kbuild.outcome import Status, exit_status
        from kbuild.paths import PROJECT

        # Not handed on: a test runner's 1 is the tool's failure, and the contract's 1 is not ours to give.
        failed = [argv for argv in commands if subprocess.run([sys.executable, *argv], cwd=PROJECT).returncode]
        return exit_status(Status.FAIL if failed else Status.PASS)

    _run(work)


@task(
    help={
        "only": "a pytest expression (-k): only these tests",
        "unit": "only the fast ones, without emulators",
        "all_kernels": "also against the source of every series that Debian has",
    }
)
def test(ctx: Context, only: str | None = None, unit: bool = False, all_kernels: bool = False) -> None:
    """Lint, then run all tests, among them one real gate of 6.1 on both vendors.

    Examples:
      inv test
      inv test --unit --only page
      inv test --all-kernels
    """
    folder = "tests/unit" if unit else "tests"
    selection = [*(["-k", only] if only else _SIDE_BY_SIDE), *["--all-kernels"] * all_kernels]
    _tools(*_LINTERS, ["-m", "pytest", folder, *selection])


# Most tests wait for one emulator or one compiler. In the given order, for those that take long come first.
_SIDE_BY_SIDE = ["--numprocesses=logical", "--maxprocesses=4", "--dist=loadfile", "--no-loadscope-reorder"]


_LINTERS = (
    ["-m", "ruff", "check", "--quiet"],
    ["-m", "ruff", "format", "--check", "--quiet"],
    ["-m", "mypy"],
    ["scripts/reference", "--check"],
)


@task()
def lint(ctx: Context) -> None:
    """Check formatting, rules and types, and that the reference is what the code gives.

    Examples:
      inv lint
    """
    _tools(*_LINTERS)


@task(help=JSON)
def bench(ctx: Context, json: bool = False) -> None:
    """Measure the gate and the command line against doing it by hand, as ratios taken in one run.

    Examples:
      inv bench --json
    """

    def work() -> int:
        import subprocess

        from kbuild.outcome import Status, exit_status
        from kbuild.paths import PROJECT

        failed = subprocess.run([sys.executable, str(PROJECT / "scripts/bench"), *["--json"] * json]).returncode
        return exit_status(Status.ERROR if failed else Status.DONE)

    _run(work)


@task(
    iterable=["kind", "name"],
    help={
        "kind": "only trees, builds, packages, artifacts, others or runs (may be repeated)",
        "name": "remove what has such a name; * and ? stand for anything (may be repeated)",
        "older_than": "remove what was not used for that long: 14d, 12h",
        "all_": "remove all of it, but runs only with --kind runs",
        "dry_run": "say what would go",
        **JSON,
    },
)
def clean(
    ctx: Context,
    kind: list[str],
    name: list[str],
    older_than: str | None = None,
    all_: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Show what takes how much; with an age, a name or --all, remove what nobody uses. Runs only if asked for.

    Examples:
      inv clean
      inv clean --kind trees --kind builds --older-than 14d
      inv clean --name 'linux-source-6.12*' --dry-run
      inv clean --kind runs --older-than 90d
    """

    def work() -> int:
        from kbuild.cache.clean import remove, show
        from kbuild.cache.limit import cache_limit
        from kbuild.cache.removal import Selection, read_age, read_kind
        from kbuild.outcome import to_json
        from kbuild.report.cache import render, render_removal

        kinds = tuple(map(read_kind, kind))
        data: dict[str, Any]
        if all_ or name or older_than is not None:
            age = read_age(older_than) if older_than is not None else 0.0
            data = remove(Selection(kinds, tuple(name), age), dry_run=dry_run)
        else:
            data = show(kinds, cache_limit(ctx.kbuild.cache_gb))
        if json:
            sys.stdout.buffer.write(to_json(data) + b"\n")
        elif "entries" in data:
            render(data, in_full=bool(kinds))
        else:
            render_removal(data)
        return 0

    _run(work)


ns = Collection(
    bar,
    bench,
    bisect,
    build,
    clean,
    compare,
    configure,
    explain,
    gate,
    inspect,
    lint,
    load,
    report,
    runs,
    series,
    test,
    worker,
)
# Changed in an invoke.yaml (~/.invoke.yaml for all projects), or by INVOKE_KBUILD_TREE, INVOKE_KBUILD_PROFILE and
# INVOKE_KBUILD_CACHE_GB (None: 40, or a fifth of the disk where that is less).
ns.add_collection(Collection("host", host_check, host_list, host_provision, host_restore))
ns.configure({"kbuild": {"tree": "debian:6.1", "profile": "default", "cache_gb": None}})
