"""The stages of one run: configure, build, inspect, load, on record at every moment."""

from __future__ import annotations

import datetime
import fnmatch
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from kbuild import log
from kbuild.build.artifacts import artifact, artifacts_in_use, file_digest, is_whole, put
from kbuild.build.kernel import BuildResult, build, building, find_built, prepare_objects, remembered
from kbuild.build.make import Progress
from kbuild.build.reproduce import describe, keep_patches
from kbuild.build.request import BuildRequest
from kbuild.build.selftests import Programs, build_selftests, find_selftests
from kbuild.build.shipped import open_package
from kbuild.cache.inventory import agent_lock
from kbuild.command import pasteable
from kbuild.configure.tree import Tree, open_tree
from kbuild.dmesg.signatures import load as load_signatures
from kbuild.elf.image import file_module_name, module_key, read_module
from kbuild.elf.inspect import find_modules, inspect_set, with_dependencies
from kbuild.elf.inspect import to_json as inspection_json
from kbuild.elf.kernel import KernelImage, read_kernel
from kbuild.elf.layout import part_sizes
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.rules.counts import KIND as RULE_KIND
from kbuild.elf.rules.counts import is_answer, told
from kbuild.elf.rules.spec import Rules, read_rules
from kbuild.errors import KbuildError, UserError
from kbuild.gate.request import GateRequest, LoadFiles
from kbuild.gate.wanted import build_request, requested_symbols, write_configuration
from kbuild.hosts.spec import HostSpec, cpus_of, read_host
from kbuild.hosts.spec import check as missing_for
from kbuild.hosts.spec import describe as describe_host
from kbuild.load.agent import build_agent
from kbuild.load.orders.format import VENDOR_MODULES, Order
from kbuild.load.orders.plan import resolve
from kbuild.load.orders.read import check_references, read_order
from kbuild.load.places import Places
from kbuild.load.request import Cancellation, LoadRequest
from kbuild.load.runner import loading
from kbuild.load.trace.compare import answers_in, compare
from kbuild.outcome import RUN_OF, Finding, Known, Status, mark_known, to_json, verdict, worst
from kbuild.paths import PROJECT, cache_home, locked, make_folder, mark_used, write_atomically
from kbuild.profile import SHIPPED, Profile, reference
from kbuild.progress import Reporter
from kbuild.record import HostFacts, Record, Run, Stage
from kbuild.runs.release import Policy
from kbuild.setting import keep_profile, versions
from kbuild.transcript import Transcript

if TYPE_CHECKING:
    from distributed import Client

RESOURCE_KIND = "resource"
"""Of findings about what init acquires."""


FAULT = ":fault="
"""In the id of a finding that follows from an allocation that was made to fail."""


MANY_RUNS = 10
"""Of an order that is run in several ways, as long as nobody knows how many these are."""


class Stages:
    """The stages of one run, in order."""

    def __init__(
        self, request: GateRequest, profile: Profile, policy: Policy | None, run: Run, reporter: Reporter
    ) -> None:
        self.request = request
        self.profile = profile
        self.policy = policy
        self.run = run
        self.reporter = reporter
        self.results: list[Status] = []
        self.known: tuple[Known, ...] = () if request.no_known else profile.settings.known
        self.not_seen = list(self.known)
        self.acquirable: set[str] = set()
        """Functions that modules call which were asked what they acquire."""
        self.selftests = Programs()
        self.added = False
        """Whether the cache became larger."""
        self.places: Places | None = None
        """Where hosts boot while the build is made."""
        self.client: Client | None = None
        """Of a Dask cluster, where its workers load."""
        self.stack = ExitStack()
        self.cancellation = Cancellation()
        self.files: LoadFiles | None = None
        self.elsewhere: dict[str, str] = {}
        """What ran each host, where a cluster's workers did."""
        self.made: tuple[Path, KernelImage, list[Path]] | None = None
        """The bzImage, what is known of the kernel, and the modules."""

    def make(self) -> None:
        """The kernel and its modules: built, or as they were shipped."""
        keep_profile(self.run, self.profile)
        self.run.record.tools |= versions()
        self.files = self._read_load_files() if self.request.task in ("gate", "load") else None
        if self.request.cluster and self.files:
            from kbuild.cluster.fan import connected  # Dask takes half a second

            self.client = self.stack.enter_context(connected(self.request.cluster))
        if self.request.package or self.request.modules or self.request.task == "load":
            self.made = self._shipped(self.files.orders if self.files else ())
        elif (made := self._build(self.files)) is not None:
            kernel, paths = made["bzImage"], [path for name, path in made.items() if name.endswith(".ko")]
            image = read_kernel(bzimage=kernel, vmlinux=made["vmlinux"], symvers=made["Module.symvers"])
            self.made = kernel, image, paths

    def judge(self) -> None:
        """What the task asks of them, and the verdict."""
        if self.files is not None and self.made is not None:
            kernel, image, paths = self.made
            if (asked := _selftests(self.files)) and self.request.selftests:
                folder = Path(self.request.selftests).expanduser().resolve()
                self.selftests = self._keep_selftests(find_selftests(folder, asked))
            modules = ModuleSet.of(map(read_module, paths), image)
            with self._loading(kernel, modules, self.files) as transcripts:
                if self.request.task == "gate":
                    self._inspect(kernel, modules, self.files.rules)  # while hosts boot
                self._load(kernel, self.files, transcripts)
            if self.policy is not None:
                self._release(self.policy)
        self._finish()

    def take_over(self, other: Record, folder: Path) -> None:
        """In place of `judge()`: what another run, in its folder, found of the same kernel and modules.

        Each stage says whose it is. What the release policy asks is asked anew, of what was found.
        """
        record = self.run.record
        record.rules, record.sizes, record.transcripts = other.rules, other.sizes, other.transcripts
        record.hosts, record.machines, record.agent = other.hosts, other.machines, other.agent
        record.kernel = record.kernel or other.kernel
        for name in ("agent", "inspect.json"):
            if (folder / name).is_file():
                self.run.keep(folder / name, name)
        for stage in other.stages:
            if stage.name in ("inspect", "load"):
                with self._stage(stage.name) as own:
                    record.findings += self._mark(
                        one for one in other.findings if one.id.partition(":")[0] == stage.name
                    )
                    own.status, own.summary = stage.status, f"the same modules as in run {other.id}: {stage.summary}"
        if self.policy is not None:
            self._release(self.policy)
        self._finish()

    def _finish(self) -> None:
        record = self.run.record
        record.known_not_seen = [one for one in self.not_seen if self._looked_for(one)]
        # That files were read is no answer: where all orders were skipped, nothing was judged.
        judged_so = [status for status in self.results if status != Status.DONE]
        self.run.finish(worst(judged_so or self.results))

    def _looked_for(self, known: Known) -> bool:
        """Whether it could have occurred: a load that was not run, or a rule that was not asked, says nothing."""
        stage, kind, *_ = [*known.finding.split(":"), ""]
        _, fault, site = known.finding.partition(FAULT)
        if fault and not any(
            one.status != Status.SKIP and fnmatch.fnmatchcase(step.detail.get("site", ""), site)
            for one in self.run.record.transcripts
            for step in one.steps
        ):
            return False
        if not any(one.name == stage and one.status not in (None, Status.SKIP) for one in self.run.record.stages):
            return False
        if kind == RESOURCE_KIND:
            # What is not acquired in this configuration was not looked for: AVIC's notifier without AMD's IOMMU.
            cause = known.finding.split(":")[3:]
            return bool(cause) and bool(fnmatch.filter(self.acquirable, cause[0].partition("-")[0]))
        return kind != RULE_KIND or any(map(known.matches, self.run.record.findings))

    def _mark(self, findings: Iterable[Finding]) -> list[Finding]:
        """The findings with those marked that are known for this kernel. What was not seen yet is noted."""
        marked, not_seen = self._known(findings)
        self.not_seen = [one for one in self.not_seen if one in not_seen]
        return marked

    def _known(self, findings: Iterable[Finding]) -> tuple[list[Finding], list[Known]]:
        """The same, and what of the known is none of them. What the release's baseline has is marked, too."""
        kernel = self.run.record.kernel or self.run.record.tree["version"]
        marked, unseen = mark_known([*findings], self.known, kernel, datetime.datetime.now(datetime.UTC).date())
        return [self.policy.mark(one) for one in marked] if self.policy is not None else marked, unseen

    @contextmanager
    def _stage(self, name: str) -> Iterator[Stage]:
        self.reporter.begin(name)
        with self.run.stage(name, self.reporter.end) as stage:
            yield stage
        if stage.status is not None:
            self.results.append(stage.status)

    # Stages.

    def _read_load_files(self) -> LoadFiles:
        """Orders, hosts, signatures and rules, all checked before anything is done."""
        signatures = load_signatures()
        orders = tuple(map(read_order, self.profile.orders))
        if self.request.look:
            orders = tuple(msgspec.structs.replace(order, look=True) for order in orders)
        for order in orders:
            check_references(order, signatures.ids)
        hosts = tuple(map(read_host, self.profile.hosts))
        for kind, things in (("order", orders), ("host", hosts)):
            for one in things:
                if sum(one.id == other.id for other in things) > 1:
                    raise UserError(f"{self.profile.path}: two {kind} files have the id '{one.id}'")
        return LoadFiles(orders, hosts, signatures, read_rules(self.profile.rules))

    def _build(self, load_files: LoadFiles | None) -> dict[str, Path] | None:
        """The stages tree, configure and build; gives the artifacts as this run keeps them."""
        request = self.request
        symbols = requested_symbols(self.profile)
        with ExitStack() as stack:
            with self._stage("tree") as stage:
                tree = stack.enter_context(
                    open_tree(request.tree, request.rev, patches=request.patches, refresh=request.refresh)
                )
                self.run.record.tree = _tree_facts(tree)
                keep_patches(tree, self.run.folder)
                stage.status, stage.summary = Status.DONE, tree.identity
            wanted = build_request(self.profile, tree, symbols)
            self.run.record.tools |= wanted.toolchain.versions
            stack.enter_context(building(wanted))
            stack.enter_context(artifacts_in_use())
            result = find_built(wanted)
            self.added = result is None
            with self._stage("configure") as stage:
                as_before = self._configure(stage, wanted, result)
            if request.task == "configure":
                return None
            if result is None and as_before and load_files and request.boot_ahead and not self.client:
                self._boot_ahead(wanted, load_files)
            with self._stage("build") as stage:
                if result is None:
                    result = build(wanted, self.run.folder, self._progress())
                elif result.built:
                    describe(wanted, self.run.folder, artifact(result.built.files["config"]))
                findings = self._mark(result.findings)
                self.run.record.findings += findings
                stage.status = verdict(findings, [Status.PASS if result.built else Status.FAIL])
                if result.built is None:
                    stage.reason = next(f.message for f in findings if f.status == Status.FAIL)
                    return None
                modules = sorted(name for name in result.built.files if name.endswith(".ko"))
                how = "as built before" if result.reused else "built"
                stage.summary = f"{result.built.release}: {', '.join(modules)}, {how}"
                self.run.record.kernel = result.built.release
                self.run.record.artifacts = digests = result.built.files
                if (asked := _selftests(load_files)) and not request.selftests:
                    self._build_selftests(wanted, asked)
            return {name: self.run.keep(artifact(digest), f"artifacts/{name}") for name, digest in digests.items()}

    def _configure(self, stage: Stage, wanted: BuildRequest, result: BuildResult | None) -> bool:
        """Whether nothing had to be done."""
        stage.status = Status.PASS
        if result is not None and self.request.task != "configure":
            stage.summary = f"{len(wanted.symbols.wanted(wanted.tree.version).options)} requested symbols, as before"
            return True
        prepare_objects(wanted)
        done = write_configuration(wanted, reuse=self.request.task != "configure")
        self.run.record.findings += done.findings
        stage.summary = f"{len(done.requested)} requested symbols{', as before' if done.reused else ' took effect'}"
        if self.request.task == "configure":
            describe(wanted, self.run.folder, done.config)
            stage.summary += f": {done.config}"
        return done.reused

    def _build_selftests(self, wanted: BuildRequest, asked: frozenset[str]) -> None:
        """Only where an order wants them: the headers that they need alone cost seconds."""
        self.reporter.progress("build", 0, None, "selftests", None)
        programs = build_selftests(wanted, asked, self.run.folder / "selftests.log")
        self.selftests = self._keep_selftests(programs)

    def _keep_selftests(self, programs: Programs) -> Programs:
        """The programs as this run keeps them."""
        digests = {name: put(path) for name, path in programs.files.items()}
        files = {name: self.run.keep(artifact(digest), f"selftests/{name}") for name, digest in digests.items()}
        return replace(programs, files=files)

    def _boot_ahead(self, wanted: BuildRequest, files: LoadFiles) -> None:
        """Let the hosts boot while make works: after an edit of a module the kernel itself is as it was."""
        last = next(iter(remembered(wanted.objects)), None)
        if last is None or not is_whole(last.files["bzImage"]):
            return
        request = self._load_request(artifact(last.files["bzImage"]), last.release, ModuleSet.of((), None), files)
        # How many runs they have only the modules can tell.
        orders = sum(MANY_RUNS if order.many else 1 for order in request.orders)
        self.places = self.stack.enter_context(Places(request.hosts, orders))
        self.places.boot_ahead(request)

    def _progress(self) -> Callable[[Progress], None]:
        """Tell the reporter, a few times a second at most, with an estimate from the last build's count."""
        last = 0.0

        def tell(progress: Progress) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < 0.1:
                return
            last = now
            left = None
            if progress.expected and progress.done:
                left = max(progress.expected - progress.done, 0) * progress.seconds / progress.done
            self.reporter.progress("build", progress.done, progress.expected, progress.what, left)

        return tell

    def _inspect(self, kernel: Path, modules: ModuleSet, rules: Rules) -> None:
        with self._stage("inspect") as stage:
            found = inspect_set(modules, rules if self.profile.rules else None)
            marked = self._mark(self._with_command(kernel, finding) for finding in found.findings)
            inspection = replace(found, findings=tuple(marked))
            self.run.record.findings += inspection.findings
            self.run.record.rules = inspection.rules
            write_atomically(self.run.folder / "inspect.json", to_json(inspection_json(inspection, layout=False)))
            stage.status = inspection.verdict
            images = modules.modules.values()
            if self.profile.rules and rules.resources:
                self.acquirable = {used.name for image in images for used in image.imports}
            self.run.record.sizes = {
                one.name: {part: part_sizes(one)[part] for part in ("init", "exit", "text", "data")} for one in images
            }
            exports = sum(len(image.exports) for image in images)
            imports = sum(len(image.imports) for image in images)
            traits = list(dict.fromkeys(trait for image in images for trait in image.traits))
            parts = [f"{len(images)} modules", f"{exports} exports", f"{imports} imports", *traits]
            stage.summary = ", ".join([*parts, *([told(inspection.rules)] if inspection.rules else [])])

    def _with_command(self, kernel: Path, finding: Finding) -> Finding:
        """A rule that is not kept, with the command that asks it again."""
        if not (is_answer(finding) or finding.rule == RESOURCE_KIND) or not finding.status.counts:
            return finding
        rules = [word for path in self.profile.rules for word in ("--rules", reference("rules", path))]
        return msgspec.structs.replace(finding, reproduce=pasteable([*self._again("inspect", kernel), *rules]))

    def _again(self, task: str, kernel: Path) -> list[str]:
        """The beginning of a command that does it again with what the run keeps, wherever that came from."""
        folder = self.run.folder / "artifacts"
        start = [str(PROJECT / "scripts/inv"), task]
        return [*start, "--modules", str(folder), "--kernel", str(folder / kernel.name)]

    @contextmanager
    def _loading(self, kernel: Path, modules: ModuleSet, files: LoadFiles) -> Iterator[Callable[[], list[Transcript]]]:
        """Begin to load: hosts boot while the caller does something else.

        What keeps it from beginning is raised where the transcripts are asked for: it is no reason to judge less.
        """
        transcripts: Callable[[], list[Transcript]]
        with ExitStack() as stack:
            try:
                with log.context(stage="load"):
                    release = (modules.kernel and modules.kernel.release) or ""
                    request = self._load_request(kernel, release, modules, files)
                    transcripts = stack.enter_context(self._loaded_by(request))
            except KbuildError as error:
                transcripts = partial(_refuse, error)
            yield transcripts

    @contextmanager
    def _loaded_by(self, request: LoadRequest) -> Iterator[Callable[[], list[Transcript]]]:
        """By this machine, or by a cluster's workers."""
        if self.client is None:
            with loading(request, self.reporter, self.places) as transcripts:
                yield transcripts
            return
        from kbuild.cluster.fan import fanned_out

        with fanned_out(request, self.reporter, self.client) as gather:

            def transcripts_and_hosts() -> list[Transcript]:
                found, self.elsewhere = gather()
                return found

            yield transcripts_and_hosts

    def _load(self, kernel: Path, files: LoadFiles, transcripts: Callable[[], list[Transcript]]) -> None:
        record = self.run.record
        with self._stage("load") as stage:
            if self.client is None:
                record.hosts = {spec.id: describe_host(spec) for spec in files.hosts if not missing_for(spec)}
            answers = answers_in(record.findings)
            compared = [compare(one, answers) for one in transcripts()]
            record.hosts |= self.elsewhere
            size = kernel.stat().st_size
            record.machines = {
                spec.id: _facts(spec.for_kernel(size)) for spec in files.hosts if spec.id in record.hosts
            }
            record.transcripts = [_judged(one, self._mark(one.findings)) for one in compared]
            record.findings += [finding for one in record.transcripts for finding in one.findings]
            stage.status = worst(one.status for one in record.transcripts)
            passed = sum(one.status == Status.PASS for one in record.transcripts)
            orders = {one.order.partition(RUN_OF)[0] for one in record.transcripts}
            several = any(RUN_OF in one.order for one in record.transcripts)
            what = f"runs of {len(orders)} orders" if several else "orders"
            stage.summary = f"{passed} of {len(record.transcripts)} {what} passed on {len(files.hosts)} hosts"

    def _release(self, policy: Policy) -> None:
        record = self.run.record
        with self._stage("release") as stage:
            found, record.release = policy.judge(record)
            findings = self._mark(found)
            record.findings += findings
            stage.status = verdict(record.findings, [Status.PASS])
            record.release |= policy.counted(record.findings)
            stage.summary = policy.told(record.release)

    def _load_request(self, kernel: Path, release: str, modules: ModuleSet, files: LoadFiles) -> LoadRequest:
        start = self._again("load", kernel)
        if self.request.profile != GateRequest.profile:
            start += ["--profile", str(self.profile.path.resolve())]
        if self.profile.flavour:
            start += ["--flavour", self.profile.flavour]
        if self.selftests.files:
            start += ["--selftests", str(self.run.folder / "selftests")]
        named = {one.id: reference("orders", path) for one, path in zip(files.orders, self.profile.orders, strict=True)}
        hosts = {one.id: reference("hosts", path) for one, path in zip(files.hosts, self.profile.hosts, strict=True)}

        return LoadRequest(
            kernel=kernel,
            release=release,
            modules=modules,
            orders=files.orders,
            only={one.id: runs for one, runs in zip(files.orders, self.profile.orders.values(), strict=True)},
            hosts=tuple(spec.for_kernel(kernel.stat().st_size, self.profile.slowness) for spec in files.hosts),
            command_line=self.profile.command_line,
            signatures=files.signatures,
            agent=self._agent(),
            rules=files.rules,
            run=self.run.record.id,
            folder=make_folder(self.run.folder / "hosts"),
            again=_Again(tuple(start), hosts, named),
            keep=self.run.add,
            selftests=self.selftests,
            resources=read_rules((SHIPPED / "rules/resources.toml",)).resources,
            cancellation=self.cancellation,
            known=lambda transcript: _judged(transcript, self._known(transcript.findings)[0]),
        )

    def _agent(self) -> Path:
        """The agent, as this run keeps it."""
        with locked(agent_lock(), shared=True):
            mark_used(agent_lock())
            agent = self.run.keep(build_agent(cache_home() / "agent"), "agent")
        self.run.record.agent = file_digest(agent)
        return agent

    def _shipped(self, orders: Sequence[Order]) -> tuple[Path, KernelImage, list[Path]]:
        """Files that were built elsewhere: a kernel, and of the modules with it those that the orders are about."""
        request, record = self.request, self.run.record
        with self._stage("files") as stage, ExitStack() as stack:
            if request.package:
                self.added = True
                shipped = stack.enter_context(open_package(request.package, refresh=request.refresh))
                kernel, folder = shipped.kernel, shipped.modules
                if shipped.config:
                    self.run.keep(shipped.config, "config")
                record.tree = {"asked": request.package, "identity": f"{shipped.package} {shipped.version}"}
            elif request.modules and request.kernel:
                kernel = Path(request.kernel).expanduser().resolve()
                folder = Path(request.modules).expanduser().resolve()
                record.tree = {"asked": request.modules, "identity": f"files in {folder}"}
            else:
                raise UserError("give --modules FOLDER and --kernel BZIMAGE")
            every = find_modules(folder)
            there = {module_key(name) for path in every if (name := file_module_name(path))}
            named = {name for order in orders for cpu in VENDOR_MODULES for name in resolve(order, cpu).loads}
            paths = with_dependencies(every, {name for name in named if module_key(name) in there}) or every
            image = read_kernel(bzimage=kernel)
            if image.release is None:
                raise UserError(f"{kernel}: does not say which release it is")
            record.kernel = image.release
            # From here on only the run's own files count: what they came from may change or go.
            stack.enter_context(artifacts_in_use())
            digests = {path.name: put(path) for path in (kernel, *paths)}
            kernel, *paths = (self.run.keep(artifact(digest), f"artifacts/{name}") for name, digest in digests.items())
            record.artifacts = digests
            stage.status = Status.DONE
            stage.summary = f"{record.tree['identity']}: {', '.join(sorted(path.name for path in paths))}"
        return kernel, image, paths


@dataclass(frozen=True)
class _Again:
    """The command that runs an order on a host once more. It can be pickled."""

    start: tuple[str, ...]
    hosts: Mapping[str, str]
    """Of a host's id the word for `--host`."""
    orders: Mapping[str, str]

    def __call__(self, host: str, order: str) -> str:
        name, run_of, run = order.partition(RUN_OF)
        return pasteable([*self.start, "--host", self.hosts[host], "--order", f"{self.orders[name]}{run_of}{run}"])


def _refuse(error: KbuildError) -> NoReturn:
    raise error


def _facts(spec: HostSpec) -> HostFacts:
    cpu = spec.qemu.cpu if spec.qemu else spec.bochs.model if spec.bochs else ""
    return HostFacts(spec.kind, cpu, spec.cpus, spec.memory_mb, spec.gives, cpus_of(spec))


def _selftests(files: LoadFiles | None) -> frozenset[str]:
    """What the orders ask for of KVM's selftests."""
    return frozenset[str]().union(*(order.selftests for order in files.orders)) if files else frozenset()


def _judged(transcript: Transcript, findings: list[Finding]) -> Transcript:
    """The transcript with its findings as they are marked: what is known does not count here either.

    What did not go as expected has a finding that counts, so where there is one the findings alone say the outcome.
    """
    if not any(finding.status.counts for finding in findings):
        return msgspec.structs.replace(transcript, findings=findings)
    status = verdict((f for f in findings if f.status != Status.DONE), [Status.PASS])
    return msgspec.structs.replace(transcript, findings=findings, status=status)


def _tree_facts(tree: Tree) -> dict[str, str]:
    facts = {"asked": tree.asked, "identity": tree.identity, "version": tree.version, "source": str(tree.source)}
    if tree.commit:
        facts["commit"] = tree.commit + (" with changes" if tree.patch else "")
    if tree.patches:
        facts["patches"] = ", ".join(patch.title for patch in tree.patches)
    return facts
