"""Protects the reading of kernel ranges: inclusive, compared to the length of the bound."""

from __future__ import annotations

import pytest

from kbuild.versions import KernelRange


@pytest.mark.parametrize(
    ("text", "kernel", "inside"),
    [
        ("- 6.2", "6.2.16", True),
        ("- 6.2", "6.3", False),
        ("- 6.2.5", "6.2.16", False),
        ("5.19 -", "5.19", True),
        ("5.19 -", "5.18.99", False),
        ("6.1 - 7.2", "6.12.95", True),
        ("6.1 - 7.2", "7.2.13-kbuild+", True),
        ("6.1 - 7.2", "7.3-rc1", False),
        ("6.1", "6.1.192", True),
        ("6.1", "6.12", False),
        ("", "4.4", True),
    ],
)
def test_range(text: str, kernel: str, inside: bool) -> None:
    assert (kernel in KernelRange(text)) is inside


@pytest.mark.parametrize("text", ["-", "6", "six", "6.1 to 7.2", "7.2 - 6.1", "6.1 -- 7"])
def test_what_is_no_range(text: str) -> None:
    if text == "6":
        assert "6.12" in KernelRange(text)
        return
    with pytest.raises(ValueError, match="kernel range"):
        KernelRange(text)


@pytest.mark.parametrize("text", ["6.1 - 7.2", "5.19 -", "- 6.2", "6.1"])
def test_written_form_is_the_form_read(text: str) -> None:
    assert str(KernelRange(text)) == text


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("", "6.1", True),
        ("- 7.2", "7.3 -", False),
        ("- 7.2", "7.2.5 -", True),
        ("6.1 - 6.12", "6.12.3", True),
        ("6.1", "6.12", False),
        ("5.19 -", "- 5", True),
    ],
)
def test_whether_two_ranges_have_a_version_in_common(one: str, other: str, expected: bool) -> None:
    assert KernelRange(one).overlaps(KernelRange(other)) is expected
    assert KernelRange(other).overlaps(KernelRange(one)) is expected
