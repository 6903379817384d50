"""Fragments: what a person writes is read exactly, refused with file and line, and printed as the kernel reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbuild.configure.fragment import Fragment, merge
from kbuild.errors import UserError
from kbuild.paths import PROJECT

SHIPPED = sorted((PROJECT / "profiles" / "fragments").glob("*.config"))


def values(fragment: Fragment) -> dict[str, str]:
    return {option.name: option.value for option in fragment.options}


def test_each_form_of_a_line() -> None:
    fragment = Fragment.parse(
        "CONFIG_KVM=m\n"
        "# CONFIG_SMP is not set\n"
        "CONFIG_NR_CPUS=64   # as on the lab's machines\n"
        "CONFIG_PHYSICAL_START=0x1000000\n"
        'CONFIG_CMDLINE="console=ttyS0 # not a comment"  # a comment\n'
        'CONFIG_EMPTY=""\n'
        'CONFIG_QUOTED="say \\"hi\\""\n'
        "CONFIG_OFF=n\n"
        "# CONFIG_ALSO_OFF is not set  # for speed\n",
        "a.config",
    )
    assert values(fragment) == {
        "KVM": "m",
        "SMP": "n",
        "NR_CPUS": "64",
        "PHYSICAL_START": "0x1000000",
        "CMDLINE": '"console=ttyS0 # not a comment"',
        "EMPTY": '""',
        "QUOTED": '"say \\"hi\\""',
        "OFF": "n",
        "ALSO_OFF": "n",
    }
    reasons = {option.name: option.reason for option in fragment.options if option.reason}
    assert reasons == {"NR_CPUS": "as on the lab's machines", "CMDLINE": "a comment", "ALSO_OFF": "for speed"}
    assert str(fragment.options[2].place) == "a.config:3"


def test_a_comment_above_is_the_reason_of_the_lines_below_it() -> None:
    fragment = Fragment.parse(
        "# the console,\n# on the serial line\nCONFIG_A=y\nCONFIG_B=y # its own\nCONFIG_C=y\n"
        "\nCONFIG_D=y\n# next\nCONFIG_E=y\n",
        "a.config",
    )
    assert [option.reason for option in fragment.options] == [
        "the console, on the serial line",
        "its own",
        "the console, on the serial line",
        "",
        "next",
    ]
    assert [option.name for option in fragment.without_reason()] == ["D"]


def test_the_printed_form_has_no_comments_and_reads_back() -> None:
    fragment = Fragment.parse('CONFIG_A=y # why\nCONFIG_B=n\nCONFIG_C="x # y" # why\n', "a.config")
    assert fragment.text() == 'CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="x # y"\n'
    assert values(Fragment.parse(fragment.text(), "b.config")) == values(fragment)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("CONFIG_KVM", "neither"),
        ("KVM=m", "neither"),
        ("CONFIG_KVM=", "neither"),
        ("CONFIG_KVM = m", "neither"),
        ("CONFIG_KVM=m why", "neither"),
        ("CONFIG_KVM=yes", "write y, m, n, a number"),
        ('CONFIG_CMDLINE="unended', "neither"),
        ("CONFIG_A=y", "CONFIG_A is set twice; first in line 1"),
        ("CONFIG_A=m", "CONFIG_A is set to y and m; first in line 1"),
        ("# CONFIG_A is not set", "CONFIG_A is set to y and n; first in line 1"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(line: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Fragment.parse(f"CONFIG_A=y\n\n{line}\n", "dir/a.config")
    assert str(caught.value).startswith("dir/a.config:3: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.config: cannot be read: No such file"):
        Fragment.read(tmp_path / "gone.config")
    (tmp_path / "binary").write_bytes(b"CONFIG_A=\xff\xfe")
    with pytest.raises(UserError, match="is not UTF-8"):
        Fragment.read(tmp_path / "binary")


def test_the_later_fragment_wins_and_says_so() -> None:
    merged = merge(
        [
            Fragment.parse("CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=y\n", "one"),
            Fragment.parse("CONFIG_A=m\nCONFIG_C=y\n", "two"),
            Fragment.parse("# CONFIG_A is not set\n", "three"),
        ]
    )
    assert values(merged) == {"A": "n", "B": "y", "C": "y"}
    assert [str(one) for one in merged.overridden] == [
        "one:1: CONFIG_A=y is overridden by two:1: CONFIG_A=m",
        "two:1: CONFIG_A=m is overridden by three:1: # CONFIG_A is not set",
    ]


def test_a_line_can_be_for_some_kernels() -> None:
    fragment = Fragment.parse(
        "CONFIG_A=y # kernels - 7.2: because\nCONFIG_A=m # kernels 7.3 -: else\nCONFIG_B=y # kernels of all kinds\n",
        "a",
    )
    assert [(option.kernels, option.reason) for option in fragment.options] == [
        ("- 7.2", "because"),
        ("7.3 -", "else"),
        ("", "kernels of all kinds"),
    ]
    assert {version: values(fragment.for_kernel(version)) for version in ("6.1.192", "7.2.13", "7.3-rc1")} == {
        "6.1.192": {"A": "y", "B": "y"},
        "7.2.13": {"A": "y", "B": "y"},
        "7.3-rc1": {"A": "m", "B": "y"},
    }
    with pytest.raises(UserError, match="a:2: CONFIG_A is set twice; first in line 1"):
        Fragment.parse("CONFIG_A=y # kernels - 7.2: because\nCONFIG_A=y # kernels 7.2.5: else\n", "a")
    with pytest.raises(UserError, match="a:1: 'new' is not a kernel range"):
        Fragment.parse("CONFIG_A=y # kernels new: because\n", "a")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_each_line_that_is_shipped_says_why_it_is_there(path: Path) -> None:
    fragment = Fragment.read(path)
    assert fragment.options
    assert [str(option) for option in fragment.without_reason()] == []


@pytest.mark.parametrize("version", ["6.1", "6.12", "7.2", "7.3"])
def test_the_shipped_fragments_do_not_contradict_each_other(version: str) -> None:
    # What takes another one back (`no-…`) says the opposite, and is not used without it.
    together = [path for path in SHIPPED if not path.name.startswith("no-")]
    assert merge(Fragment.read(path).for_kernel(version) for path in together).overridden == ()
