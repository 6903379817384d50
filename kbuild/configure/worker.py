"""`python -m kbuild.configure.worker ANSWER < QUESTION`: kconfiglib in a process of its own.

Reads a Question from standard input and writes an Answer to the file ANSWER, both JSON. Ends with status 1 and one
line where the Kconfig files cannot be read.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from pathlib import Path

import kconfiglib
import msgspec

from kbuild.configure.answer import Answer, Problem, Question
from kbuild.configure.dialect import KernelKconfig, unset_numbers_read_zero
from kbuild.configure.fragment import Fragment
from kbuild.configure.reason import Reasons

NO_MACHINE = "make or the compiler could not be asked: symbols that ask them could not be evaluated and read as n"


def load(question: Question) -> KernelKconfig:
    """The tree's symbols, in the question's environment and folder, which become this process's own."""
    os.environ.clear()
    os.environ.update(question.environment)
    os.chdir(question.folder)
    source = Path(question.environment["srctree"])
    # A tree without the sources of its conf cannot be configured, but it can be explained.
    conf = source / "scripts/kconfig/symbol.c"
    if conf.is_file() and '"0x0"' in conf.read_text("utf-8", "replace"):
        unset_numbers_read_zero()
    return KernelKconfig(question.machine)


def apply(kconf: KernelKconfig, question: Question) -> None:
    """Give all symbols the values that `conf` would, as kconfiglib sees it (its allnoconfig.py and others)."""
    kconf.unset_values()
    for item in (*kconf.unique_defined_syms, *kconf.unique_choices):
        item._was_set = False  # unset_values() forgets it, and the next load would take each line for a second one
    kconf.warn = False
    base = question.base
    # A choice takes its default, and the members follow.
    choice_members = {member for choice in kconf.unique_choices for member in choice.syms}
    if base in ("allnoconfig", "allyesconfig", "allmodconfig"):
        most = {"allnoconfig": 0, "allyesconfig": 2, "allmodconfig": 1}[base]
        for item in (*kconf.unique_defined_syms, *kconf.unique_choices):
            if item.orig_type is kconfiglib.TRISTATE:
                item.set_value(1 if most and item in choice_members else most)
            elif item.orig_type is kconfiglib.BOOL and item not in choice_members:
                item.set_value(2 if most else 0)
    if base.endswith("_defconfig") or base == "defconfig":
        name = os.environ.get("KBUILD_DEFCONFIG", base) if base == "defconfig" else base
        kconf.load_config(f"arch/{os.environ['SRCARCH']}/configs/{name}", replace=False)
        # Two runs of conf: what the first one wrote out stands as said in the second one, defaults included.
        with tempfile.NamedTemporaryFile(suffix=".config") as first:
            kconf.write_config(first.name, save_old=False)
            kconf.load_config(first.name)
        for item in (*kconf.unique_defined_syms, *kconf.unique_choices):
            item._was_set = False
    if question.start:
        kconf.load_config(question.start, replace=False)
    with tempfile.NamedTemporaryFile("w", suffix=".config") as file:
        file.write(Fragment(question.options).text())
        file.flush()
        kconf.load_config(file.name, replace=False)
    kconf.warn = True


def written(kconf: KernelKconfig) -> dict[str, str]:
    """Each symbol that belongs into `.config`, with its value as it stands there."""
    result = {}
    for symbol in kconf.unique_defined_syms:
        if line := symbol.config_string:
            name, equals, value = line.rstrip("\n").partition("=")
            result[symbol.name] = value if equals and not name.startswith("#") else "n"
    return result


def answer(question: Question) -> Answer:
    """Do what the question asks."""
    kconf = load(question)
    reasons = Reasons(kconf, Path(kconf.srctree))
    options = {option.name: option for option in question.options}
    problems: list[Problem] = []
    unknown: list[Problem] = []
    explanation, no_symbol, predicted = None, None, None
    if question.config:
        kconf.warn = False
        kconf.load_config(question.config)
    elif question.explain:
        apply(kconf, question)
    for name in question.refused:
        problem = reasons.problem(options[name])
        if options[name].value != "n":
            problems.append(problem)
        elif problem.kind == "unknown":
            unknown.append(problem)
        elif kconf.syms[name].str_value not in ("n", ""):
            problems.append(problem)
    if question.explain:
        note = "" if question.machine else NO_MACHINE
        explanation = reasons.explain(question.explain, options.get(question.explain), note)
        no_symbol = reasons.unknown(question.explain) if explanation is None else None
    if question.predict:
        apply(kconf, question)
        predicted = written(kconf)
    return Answer(
        problems=tuple(problems),
        explanation=explanation,
        no_symbol=no_symbol,
        unknown=tuple(unknown),
        predicted=predicted,
        kconfig_files=tuple(kconf.kconfig_filenames),
    )


def main() -> int:
    """The process."""
    gc.disable()  # it ends before garbage matters, and reading makes a million objects that stay: a fifth of the time
    try:
        result = answer(msgspec.json.decode(sys.stdin.buffer.read(), type=Question))
    except (kconfiglib.KconfigError, OSError) as error:
        print(next((line for line in str(error).splitlines() if line.strip()), type(error).__name__))
        return 1
    Path(sys.argv[1]).write_bytes(msgspec.json.encode(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
