"""Each patch in each configuration: KVM's own objects, compiled and taken through modpost, for what these say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kbuild.barrecord import Bar, BuildOutcome, Patch
from kbuild.barspec import BarBuild, Compiler
from kbuild.build.artifacts import artifact, artifacts_in_use, is_whole
from kbuild.build.kernel import BuildResult, build, building, find_built, prepare_objects
from kbuild.build.make import Progress
from kbuild.build.request import BuildRequest
from kbuild.build.toolchain import Toolchain, find_toolchain
from kbuild.configure import git
from kbuild.configure.conf import BrokenKconfigError, RefusedError, read_config, unknown_symbol
from kbuild.configure.fragment import Fragment
from kbuild.configure.request import Request
from kbuild.configure.tree import Tree, open_tree
from kbuild.elf.image import ModuleImage, read_module
from kbuild.elf.moduleset import ModuleSet
from kbuild.errors import HarnessError, UserError
from kbuild.gate.wanted import write_configuration
from kbuild.outcome import Finding, Status, finding_id, worst
from kbuild.paths import make_folder
from kbuild.profile import Profile, bar_fragments

ARCH = "x86_64"
"""Whose modules can be looked into."""
_LIKELY = ("arch/x86", "kernel", "lib", "mm", "virt")
"""Folders with most of what KVM wants of the kernel."""


@dataclass
class Builder:
    """Builds the patches of a series, one after the other."""

    bar: Bar
    profile: Profile
    progress: Callable[[str, Progress], None]
    tell: Callable[[Patch, str, BuildOutcome], None]
    """Called of each that is over."""
    _toolchains: dict[Compiler, Toolchain | HarnessError] = field(default_factory=dict)

    def run(self, tree: str, patches: Sequence[Patch]) -> None:
        """Build what has not been built yet; each is on record when it is over."""
        for patch in patches:
            waiting = [(one, name) for one, name in self.wanted() if self.of(patch, one, name) is None]
            if not waiting:
                continue
            with open_tree(tree, patch.id) as opened:
                for one, compiler in waiting:
                    outcome = self._build(opened, patch, one, compiler)
                    self.bar.record.builds.append(outcome)
                    self.bar.save()
                    self.tell(patch, name_of(one, compiler), outcome)

    def wanted(self) -> Iterator[tuple[BarBuild, Compiler]]:
        """Every configuration with every compiler that the profile names for it."""
        settings = self.profile.settings.bar
        assert settings is not None
        for one in settings.build:
            for compiler in one.compilers:
                yield one, compiler

    def of(self, patch: Patch, one: BarBuild, compiler: Compiler) -> BuildOutcome | None:
        """What became of it, if it is over."""
        same = (patch.id, one.name, compiler)
        return next((done for done in self.bar.record.builds if (done.patch, done.build, done.compiler) == same), None)

    def request(self, tree: Tree, one: BarBuild, toolchain: Toolchain) -> BuildRequest:
        """What is built of a tree."""
        settings = self.profile.settings
        assert settings.bar is not None
        options = Fragment.parse("\n".join(one.options), f"{self.profile.path}, [[bar.build]] {one.name}")
        fragments = (*map(Fragment.read, bar_fragments(self.profile, settings.bar)), options)
        return BuildRequest(
            tree=tree,
            symbols=Request(one.base, fragments, one.arch),
            toolchain=toolchain,
            local_version=f"{self.profile.local_version}-bar",
            warnings_count=settings.build.warnings_count,
            targets=one.targets,
        )

    def objects(self, tree: Tree, one: BarBuild, compiler: Compiler) -> Path | None:
        """The object folder of a configuration; None without its compiler."""
        toolchain = self._toolchain(compiler)
        return None if isinstance(toolchain, HarnessError) else self.request(tree, one, toolchain).objects

    def _build(self, tree: Tree, patch: Patch, one: BarBuild, compiler: Compiler) -> BuildOutcome:
        folder = self.bar.folder / "builds" / f"{patch.id[:12]}-{name_of(one, compiler)}"
        outcome = BuildOutcome(
            patch=patch.id, build=one.name, compiler=compiler, status=Status.SKIP, folder=str(folder)
        )
        if tree.version not in one.kernels:
            outcome.reason = f"it is for kernels {one.kernels}, and this is {tree.version}"
            return outcome
        toolchain = self._toolchain(compiler)
        if isinstance(toolchain, HarnessError):
            outcome.reason = str(toolchain)
            return outcome
        self.bar.record.tools[compiler] = toolchain.compiler
        self.bar.record.tools["ld"] = toolchain.versions["ld"]
        make_folder(folder)
        wanted = self.request(tree, one, toolchain)
        with building(wanted), artifacts_in_use():
            result = self._configured(wanted, outcome) and self._made(wanted, folder, one, compiler)
            if not result:
                return outcome
            self._judge(outcome, result, wanted)
        return outcome

    def _toolchain(self, compiler: Compiler) -> Toolchain | HarnessError:
        if compiler not in self._toolchains:
            try:
                self._toolchains[compiler] = find_toolchain(compiler)
            except HarnessError as error:
                self._toolchains[compiler] = error
        return self._toolchains[compiler]

    def _configured(self, wanted: BuildRequest, outcome: BuildOutcome) -> bool:
        """Whether there is such a configuration; where there is none, the outcome says why."""
        prepare_objects(wanted)
        try:
            done = write_configuration(wanted, reuse=True)
        except RefusedError as error:
            outcome.reason = "; ".join(problem.message for problem in error.problems)
            return False
        except BrokenKconfigError as error:
            outcome.status, outcome.reason = Status.FAIL, str(error)
            return False
        # To leave off what there is not leaves nothing off.
        said = {one.id: one.message for one in done.findings}
        own = {unknown_symbol(option.name): option for option in wanted.symbols.fragments[-1].options}
        unknown = [said[name].removeprefix(f"{option.place}: ") for name, option in own.items() if name in said]
        if unknown:
            outcome.reason = "; ".join(unknown)
        assert self.profile.settings.bar is not None
        values = read_config(done.config.read_text("utf-8", "replace"))
        # What this kernel does not have, or does not ask about here, has no value.
        outcome.values = {name: values[name] for name in self.profile.settings.bar.symbols if name in values}
        return not unknown

    def _made(self, wanted: BuildRequest, folder: Path, one: BarBuild, compiler: Compiler) -> BuildResult:
        """A failure is seen twice before a patch is blamed for it.

        Kbuild asks the compiler at each call of make what it can do. Where a probe fails for once, on a machine that is
        short of something, an option is missing, and objtool complains of each indirect call. Behind a real error make
        has little to do again.
        """
        name = name_of(one, compiler)

        def make() -> BuildResult:
            return build(wanted, folder, lambda progress: self.progress(name, progress))

        result = find_built(wanted) or make()
        if any(finding.status.counts for finding in result.findings):
            again = make()
            result = replace(again, seconds=result.seconds + again.seconds)
        return result

    def _judge(self, outcome: BuildOutcome, result: BuildResult, wanted: BuildRequest) -> None:
        outcome.seconds = round(result.seconds, 1)
        outcome.findings = [one for one in result.findings if one.status.counts]
        if result.built:
            files = result.built.files
            outcome.files = {name: digest for name, digest in files.items() if name.endswith(".ko")}
            if outcome.files and wanted.symbols.arch == ARCH:
                outcome.findings += self._unprovided(outcome, wanted.tree.source)
        own = [one.status for one in outcome.findings]
        outcome.status = worst(own) if own else Status.PASS if result.built else Status.FAIL
        if outcome.status != Status.PASS:
            outcome.reason = next(iter(one.message for one in outcome.findings), "make failed")

    def _unprovided(self, outcome: BuildOutcome, source: Path) -> list[Finding]:
        """Of the base nothing is asked: what it wants is not the series' doing."""
        same = (outcome.build, outcome.compiler)
        before = [one for one in self.bar.record.builds if (one.build, one.compiler) == same]
        if not before:
            return []
        first = next((one for one in before if one.files), None)
        if first is None:
            return [_unasked("nothing before it could be built, so what it wants anew is not known")]
        return unprovided(first.files, outcome.files, source)


def name_of(one: BarBuild, compiler: str) -> str:
    """A configuration and its compiler, as they are told of."""
    return f"{one.name}-{compiler}"


def unprovided(before: Mapping[str, str], after: Mapping[str, str], source: Path) -> list[Finding]:
    """What the modules want since the base, and neither they nor the kernel's source export.

    modpost cannot tell: there is no vmlinux of this configuration. `before`, `after`: of each module its SHA-256; they
    are of x86-64. What cannot be looked into is a finding, too.
    """
    for name, digest in (*before.items(), *after.items()):
        if not is_whole(digest):
            return [_unasked(f"{name} is not in the cache any more")]
    try:
        old, new = (ModuleSet.of(map(read_module, map(artifact, one.values())), None) for one in (before, after))
    except UserError as error:
        return [_unasked(str(error))]
    findings: list[Finding] = []
    for image in new.modules.values():
        known = {wanted.name for wanted in old[image.name].imports} if image.name in old else set()
        for wanted, provider in new.providers(image):
            if provider.by == "module" or wanted.name in known or wanted.weak:
                continue
            owner = next((other.name for other in new.modules.values() if _defines(other, wanted.name)), None)
            if owner is None and _exported(source, wanted.name):
                continue
            who = f"{owner} has it and does not export it" if owner else "nothing in the tree's source exports it"
            findings.append(
                Finding(
                    id=finding_id("build", "unresolved-import", image.name, wanted.name),
                    status=Status.FAIL if owner else Status.ERROR,
                    message=f"{image.name} needs {wanted.name}: {who}",
                    module=image.name,
                )
            )
    return findings


def _unasked(why: str) -> Finding:
    """That nobody can say whether all that the modules want is there."""
    return Finding(
        id=finding_id("build", "unresolved-import", "modules", "not-asked"),
        status=Status.ERROR,
        message=f"whether the kernel exports what the modules want cannot be told: {why}",
    )


def _defines(image: ModuleImage, name: str) -> bool:
    return any(one.name == name and one.defined and one.binding != "local" for one in image.symbols)


def _exported(source: Path, name: str) -> bool:
    """Whether a line of the source exports it, in whatever configuration."""
    pattern = rf"EXPORT_[A-Z_]*\((__)?{re.escape(name)}\b"
    for folders in (_LIKELY, (".",)):  # all of it takes a minute where nothing of it is in memory
        where = [f"{folder}/*.{suffix}" for folder in folders for suffix in ("c", "S", "h")]
        argv = ("grep", "--quiet", "--no-index", "-E", "-e", pattern, "--", *where)
        if git.call("-C", source, *argv, timeout=600, check=False).status == 0:
            return True
    return False
