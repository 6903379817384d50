"""Real kernels for the tests: Debian's 6.1, built as a gate builds it, from the same cache."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from kbuild.build.kernel import build, building, find_built, prepare_objects
from kbuild.configure.apt import archive
from kbuild.configure.tree import Tree, open_tree
from kbuild.gate.wanted import build_request, requested_symbols, write_configuration
from kbuild.profile import read_profile


@pytest.fixture(scope="session")
def kernel_tree() -> Tree:
    """Debian's 6.1 source. Its slot is not locked: tests run gates of their own, which lock it."""
    with open_tree("debian:6.1") as tree:
        return tree


@pytest.fixture(scope="session")
def kernel_source(kernel_tree: Tree) -> Path:
    """An unpacked 6.1 tree. Only to be read."""
    return kernel_tree.source


def pytest_addoption(parser: pytest.Parser) -> None:
    """`inv test --all-kernels`: also against the other series that Debian has; unstable drops versions."""
    parser.addoption("--all-kernels", action="store_true", help="fetch and use the source of every series")


def pytest_configure() -> None:
    """Where a shell began this in the background it ignores SIGINT, and so would all that the tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def kernel_sources(kernel_tree: Tree, request: pytest.FixtureRequest) -> dict[str, Path]:
    """Unpacked trees by series: 6.1, and with --all-kernels every one that `--tree debian:X.Y` can name."""
    sources = {"6.1": kernel_tree.source}
    if request.config.getoption("--all-kernels"):
        for series in archive().series:
            with open_tree(f"debian:{series}") as tree:
                sources[series] = tree.source
    return sources


@pytest.fixture(scope="session")
def kernel_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The object folder (`O=`) of the default profile's 6.1, with bzImage and modules. Only to be read.

    Built if it is not in the cache yet; a gate that comes first has done that.
    """
    profile = read_profile("default")
    with open_tree("debian:6.1") as tree:
        wanted = build_request(profile, tree, requested_symbols(profile))
        with building(wanted):
            if find_built(wanted) is None:
                prepare_objects(wanted)
                write_configuration(wanted)
                assert build(wanted, tmp_path_factory.mktemp("build")).built
        return wanted.objects
