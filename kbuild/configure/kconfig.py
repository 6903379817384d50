"""kconfiglib, asked through a worker: predictions and explanations."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from kbuild import command, log, paths
from kbuild.configure.answer import Answer, Explanation, Question
from kbuild.configure.request import Request, check, make_command
from kbuild.configure.tree import kernel_version
from kbuild.errors import HarnessError, UserError

TIMEOUT_S = 300.0
"""For make, and for the worker: both take 2 to 4 s on an idle machine; more than this is a hang."""

NOT_THE_USERS = dict.fromkeys(("LLVM", "LLVM_IAS", "KCPPFLAGS", "KAFLAGS", "KBUILD_VERBOSE", "KBUILD_EXTRA_WARN"), "")
"""Variables that Kbuild takes from the environment, as if they were not there."""
_PROBE = '$(shell,env -0 > "$KBUILD_CONFIGURE_ENVIRONMENT")\n'


class Environment(msgspec.Struct, frozen=True):
    """What Kbuild gives to its `conf`."""

    variables: Mapping[str, str]
    machine: bool = True
    """Whether make and the compiler were there; where not, the variables are the few that can be known without."""


def environment(
    source: Path, output: Path, request: Request, make_variables: Mapping[str, str] | None = None
) -> Environment:
    """Ask Kbuild for the environment of its `conf`, by a Kconfig file whose only line writes it down.

    Makes `conf` in `output` when it is not there (2 s; else 0.2 s). Raises HarnessError.
    """
    with tempfile.TemporaryDirectory(prefix="kbuild-environment.") as folder:
        probe, dump = Path(folder, "Kconfig"), Path(folder, "environment")
        probe.write_text(_PROBE)
        run_make(
            make_command(source, output, request, make_variables or {}, f"KBUILD_KCONFIG={probe}", "listnewconfig"),
            {"KBUILD_CONFIGURE_ENVIRONMENT": str(dump)},
        )
        if not dump.exists():
            raise HarnessError("conf did not tell its environment: scripts/kconfig of this kernel works in another way")
        entries = os.fsdecode(dump.read_bytes()).split("\0")
    variables = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    # Relative to O= where that is inside the tree; the worker works elsewhere.
    return Environment({**variables, "srctree": str(source)})


def environment_without_make(source: Path, request: Request) -> Environment:
    """The little that Kconfig files need to be read at all, where there is no make or no compiler."""
    variables = {
        "PATH": os.environ.get("PATH", os.defpath),
        "srctree": str(source),
        "ARCH": request.arch,
        "SRCARCH": request.source_arch,
        "KBUILD_DEFCONFIG": f"{request.arch}_defconfig",
        "LC_ALL": "C",
    }
    return Environment(variables, machine=False)


def run_make(argv: list[str], env: Mapping[str, str]) -> str:
    """Run a configuration target; its output. Raises HarnessError with the line that says what is wrong."""
    # A MAKEFLAGS from outside (this tool under another make) would hand us that one's options and job server. Kconfig
    # asks the compiler what it can do; a ccache that finds its disk full would answer for it that it can nothing.
    settings = {"MAKEFLAGS": "", "CCACHE_DISABLE": "1", **NOT_THE_USERS}
    done = command.run(argv, env={**settings, **env}, timeout=TIMEOUT_S, check=False)
    if done.status:
        raise MakeError(argv, done.status, done.output)
    return done.output


class MakeError(HarnessError):
    """make failed. The text is the first line of its output that sounds like the cause."""

    def __init__(self, argv: list[str], status: int, output: str) -> None:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        host = [line for line in lines if command.HOST_FAILED.search(line)]
        cause = [line for line in lines if re.search(r"error|not found|No such|cannot|\*\*\*|:\d+:", line, re.I)]
        self.line = next(iter([*host, *cause, *reversed(lines)]), "it said nothing")
        # To do it again by hand says nothing of a full disk.
        again = "" if host else f" (status {status} from: {command.pasteable(argv)})"
        super().__init__(f"{self.line}{again}")


def ask(question: Question) -> Answer:
    """Put a question to a worker. Raises HarnessError with its first line where it fails."""
    with tempfile.TemporaryDirectory(prefix="kbuild-kconfig.") as folder, log.timed("configure.kconfiglib"):
        answer = Path(folder, "answer.json")
        # -P: the folder where it starts must not be searched for Python modules.
        argv = [sys.executable, "-P", "-m", "kbuild.configure.worker", str(answer)]
        done = command.run(argv, stdin=msgspec.json.encode(question), timeout=TIMEOUT_S, check=False)
        if done.status or not answer.exists():
            lines = [line.strip() for line in done.output.splitlines() if line.strip()] or [f"status {done.status}"]
            line = lines[-1] if lines[0].startswith("Traceback") else lines[0]
            raise HarnessError(
                f"kconfiglib {'failed' if command.HOST_FAILED.search(line) else 'cannot read this tree'}: {line}"
            )
        return msgspec.json.decode(answer.read_bytes(), type=Answer)


def explain(
    source: Path,
    output: Path | None,
    symbol: str,
    request: Request,
    make_variables: Mapping[str, str] | None = None,
) -> Explanation:
    """Why a symbol has its value, what blocks it, where it is defined.

    The values are those of `output`'s `.config` where there is one, else those that `request` would give. Needs
    neither make nor a compiler; without them the explanation's `note` says what could not be evaluated. Raises
    UserError, with the nearest names, for what is no symbol.
    """
    name = symbol.removeprefix("CONFIG_")
    if not re.fullmatch(r"\w+", name):
        raise UserError(f"'{symbol}' is no symbol's name: write it as KVM_INTEL or CONFIG_KVM_INTEL")
    source = source.resolve()
    config = output / ".config" if output is not None and (output / ".config").is_file() else None
    with tempfile.TemporaryDirectory(prefix="kbuild-explain.") as scratch:
        answer = ask(
            Question(
                environment=(env := _environment_for(source, output, request, make_variables)).variables,
                folder=scratch,
                machine=env.machine,
                base=request.base,
                start=str(request.start.resolve()) if request.start else None,
                options=request.wanted(kernel_version(source)).options,
                config=str(config.resolve()) if config else None,
                explain=name,
            )
        )
    if answer.explanation is None:
        raise UserError(answer.no_symbol or f"{symbol}: nothing is known of it")
    return answer.explanation


def _environment_for(
    source: Path, output: Path | None, request: Request, make_variables: Mapping[str, str] | None
) -> Environment:
    """Kbuild's environment, or the little that is known without it."""
    compiler = (make_variables or {}).get("CC", "gcc").split()
    if shutil.which("make") is None or not compiler or shutil.which(compiler[-1]) is None:
        return environment_without_make(source, request)
    # conf is made there and kept: to make it takes as long as all the rest.
    tree = hashlib.sha256(str(source).encode()).hexdigest()[:16]
    folder = output.resolve() if output is not None else paths.cache_home() / "explain" / tree
    check(source, folder, request)
    try:
        with paths.locked(paths.cache_home() / "explain" / f"{folder.name}.lock"):
            paths.mark_used(paths.make_folder(folder))
            return environment(source, folder, request, make_variables)
    except HarnessError as error:
        log.get().warning("configure.no_environment", reason=str(error))
        return environment_without_make(source, request)
