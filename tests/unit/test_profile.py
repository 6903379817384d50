"""Protects what a profile names: found beside it or among ours, each once, or refused in one line that says where."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kbuild.elf.rules.spec import read_rules
from kbuild.errors import UserError
from kbuild.profile import SHIPPED, find_hosts, find_orders, read_profile

PROFILE = """\
title = "t"

[configure]
fragments = ["base"]

[load]
orders = ["vendor-alone"]
hosts = ["qemu-svm"]
"""
RULE = '[[symbol]]\nid = "x"\nname = "f"\nmodule = "kvm"\nsection = ".text"\n'


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "p.toml"
    path.write_text(PROFILE)
    return path


def refusal(profile: Path, inspect: str) -> str:
    profile.write_text(f"{PROFILE}\n[inspect]\n{inspect}\n")
    with pytest.raises(UserError) as caught:
        read_profile(str(profile))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_default_profile_asks_what_comments_say_and_knows_what_breaks_it() -> None:
    """Each rule that a released kernel does not keep is known, in some kernels, and nothing else is."""
    profile = read_profile("default")
    asked = ("kvm", "kvm-not-kept", "resources")
    assert profile.rules == tuple(SHIPPED / f"rules/{name}.toml" for name in asked)
    read_rules(profile.rules)
    not_kept = {rule.id for rule in read_rules(profile.rules[1:2]).every}
    known = [one for one in profile.settings.known if one.finding.startswith("inspect:rule:")]
    assert {one.finding.split(":")[3] for one in known} == not_kept
    assert all(str(one.kernels) for one in known)


def test_a_profile_without_rules_asks_none(profile: Path) -> None:
    assert read_profile(str(profile)).rules == ()


def test_rules_beside_the_profile_come_before_ours(profile: Path) -> None:
    profile.write_text(f'{PROFILE}\n[inspect]\nrules = ["kvm", "./mine.toml", "mmu-setup-thread"]\n')
    (profile.parent / "rules").mkdir()
    mine = profile.parent / "rules/kvm.toml", profile.parent / "./mine.toml"
    for number, path in enumerate(mine):
        path.write_text(RULE.replace('"x"', f'"x{number}"'))
    rules = read_profile(str(profile)).rules
    assert rules == (*mine, SHIPPED / "rules/mmu-setup-thread.toml")
    assert {rule.id for rule in read_rules(rules).symbols} == {"x0", "x1"}


@pytest.mark.parametrize(
    ("inspect", "expected"),
    [
        (
            'rules = ["nothing"]',
            "inspect.rules: no file for 'nothing'; expected a path, or one of rules/: kvm, kvm-budgets, ",
        ),
        ('rules = ["kvm", "kvm"]', "inspect.rules: 'kvm' is named twice; expected each once"),
        ('rules = "kvm"', "inspect.rules: expected `array`, got `str`"),
        ('rule = ["kvm"]', "inspect.rule: no such key; known here: rules"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(profile: Path, inspect: str, expected: str) -> None:
    line = len(PROFILE.splitlines()) + 3
    assert refusal(profile, inspect).startswith(f"{profile}:{line}: {expected}")


def test_orders_are_named_one_by_one_by_globs_and_by_their_runs(tmp_path: Path) -> None:
    (tmp_path / "orders").mkdir()
    mine, hides, at = (tmp_path / "orders" / name for name in ("mine.toml", "tdp-off.toml", "a@b.toml"))
    for path in (mine, hides, at):
        path.write_text("")
    ours = SHIPPED / "orders"
    assert find_orders(["vendor-alone", "mine"], tmp_path) == {ours / "vendor-alone.toml": (), mine: ()}
    assert [*find_orders(["tdp-off*"], tmp_path)] == [hides, ours / "tdp-off-then-on.toml"]
    assert {*find_orders(["all"], tmp_path)} == {*ours.glob("*.toml"), mine, hides, at} - {ours / "tdp-off.toml"}
    assert find_orders(["mine@kvm.a=1", "mine@kvm.a=0"], tmp_path) == {mine: ("kvm.a=1", "kvm.a=0")}
    assert find_orders(["mine@kvm.a=1", "m*"], tmp_path)[mine] == ()
    assert find_orders(["mine", "mine@kvm.a=1"], tmp_path) == {mine: ()}
    assert find_orders(["orders/a@b.toml", "orders/a@b.toml@kvm.a=1"], tmp_path) == {at: ()}
    assert find_orders([f"{mine}@x"], Path("/")) == {mine: ("x",)}
    for name in ("none", "none*", "none@x", "./none.toml@x"):
        with pytest.raises(KeyError, match=re.escape(name)):
            find_orders([name], tmp_path)


FLAVOURS = """
[[flavour]]
name = "debug"
title = "d"
fragments = ["debug", "./mine.config"]

[[flavour]]
name = "trace"
title = "t"
fragments = ["trace"]
orders = ["tdp-off*"]
command_line = ["watchdog_thresh=60"]
slowness = 3
"""


def test_a_flavour_is_the_profile_with_more_on_top(profile: Path) -> None:
    profile.write_text(PROFILE + FLAVOURS)
    (profile.parent / "mine.config").write_text("CONFIG_X=y\n")
    base, debug, trace = (read_profile(str(profile), name) for name in (None, "debug", "trace"))
    ours = SHIPPED / "fragments"
    assert (base.flavour, base.fragments, base.local_version) == (None, (ours / "base.config",), "-kbuild")
    assert debug.fragments == (*base.fragments, ours / "debug.config", profile.parent / "mine.config")
    assert (debug.flavour, debug.local_version, debug.orders) == ("debug", "-kbuild-debug", base.orders)
    assert trace.fragments == (*base.fragments, ours / "trace.config")
    assert {*trace.orders} == {SHIPPED / f"orders/{name}.toml" for name in ("tdp-off", "tdp-off-then-on")}
    assert (base.slowness, trace.slowness) == (1, 3)
    assert (base.command_line, trace.command_line) == ((), ("watchdog_thresh=60",))


@pytest.mark.parametrize(
    ("flavour", "expected"),
    [
        ('fragments = ["no"]', "fragments: no file for 'no'; expected a path, or one of fragments/: base, "),
        ('fragments = []\norders = ["no"]', "orders: no file for 'no'; expected a path, or one of orders/: "),
        ("fragments = []\nslowness = 0", "slowness: expected `float` >= 1"),
        (
            "fragments = []\nslow = 2",
            "slow: no such key; known here: name, title, fragments, orders, hosts, command_line, slowness",
        ),
        ('fragments = []\nname = "a b"', "name: expected `str` matching regex"),
    ],
)
def test_a_flavour_that_nobody_asks_for_is_checked_too(profile: Path, flavour: str, expected: str) -> None:
    name = "" if "name =" in flavour else 'name = "a"\n'
    text = f'{PROFILE}\n[[flavour]]\n{name}title = ""\n{flavour}\n'
    profile.write_text(text)
    with pytest.raises(UserError) as caught:
        read_profile(str(profile))
    place = f"{profile}:{len(text.splitlines())}: flavour[0]."
    assert str(caught.value).startswith(place + expected), str(caught.value)


def test_flavours_have_different_names(profile: Path) -> None:
    profile.write_text(PROFILE + FLAVOURS.replace('"trace"\ntitle', '"debug"\ntitle'))
    (profile.parent / "mine.config").write_text("")
    with pytest.raises(UserError, match="flavour: 'debug' is named twice"):
        read_profile(str(profile))


def test_a_flavour_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"--flavour nothing: .* known: debug, kasan, fault, trace, smp"):
        read_profile("default", "nothing")


def test_hosts_by_glob(tmp_path: Path) -> None:
    ours = SHIPPED / "hosts"
    (tmp_path / "hosts").mkdir()
    hides, mine = (tmp_path / "hosts" / f"{name}.toml" for name in ("qemu-svm", "mine"))
    hides.touch()
    mine.touch()
    assert find_hosts(["qemu-svm", "qemu-*"], tmp_path)[0] == hides
    assert len({*find_hosts(["qemu-svm", "qemu-*"], tmp_path)}) == len([*ours.glob("qemu-*.toml")])
    assert {*find_hosts(["all"], tmp_path)} == {*ours.glob("*.toml"), mine, hides} - {ours / "qemu-svm.toml"}
    with pytest.raises(KeyError, match="no-such"):
        find_hosts(["qemu-svm", "no-such*"], tmp_path)
