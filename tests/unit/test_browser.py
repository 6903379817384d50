"""Protects each page in a browser: no script but its own runs, nothing stands out of a desktop's or a phone's width,
words can be read in light and in dark, and whoever has only a keyboard gets everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbuild.elf.tree.sides import flow_beside
from kbuild.outcome import Status
from kbuild.report.html.page import render_html
from kbuild.report.html.series import render_series_html
from kbuild.transcript import StepResult, Transcript
from tests.unit.browser import Browser, browser, chromium
from tests.unit.records import hostile, series
from tests.unit.test_compare_page import CREATE, call, rendered, tree
from tests.unit.test_page import code

pytestmark = pytest.mark.skipif(chromium() is None, reason="needs chromium")
KINDS = ("run", "series", "compare")
DESKTOP, PHONE = 1280, 390

# The contrast of each text with what is behind it (WCAG 2.1, 1.4.3), where it is less than normal text should have.
CONTRAST = """
(() => {
  const light = ([r, g, b]) => {
    const part = one => (one /= 255) <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const color = text => text.match(/[\\d.]+/g).map(Number);
  const behind = one => {
    for (; one; one = one.parentElement) {
      const found = color(getComputedStyle(one).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || ['SCRIPT', 'STYLE', 'TITLE', 'title'].includes(one.tagName)) continue;
    const pair = [light(color(getComputedStyle(one).color)), light(behind(one))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) bad.push(one.outerHTML.slice(0, 80) + ' ' + ratio.toFixed(2));
  }
  return bad;
})()
"""

# Heads of rows with a few letters to a line.
SQUEEZED = """
[...document.querySelectorAll('.wide th[scope=row]')].filter(one => one.checkVisibility() && one.offsetWidth < 120)
  .map(one => one.textContent)
"""


def faulting() -> Transcript:
    """An allocation of a load that was made to fail."""
    detail = {"site": "kvm_x86_vendor_init/kmem_cache_create_usercopy", "allocation": "1", "tolerated": "a " * 200}
    step = StepResult(number=1, action="inject", status=Status.PASS, detail=detail, errno="ENOMEM")
    return Transcript(host="qemu-svm", order="faults-vendor@1", status=Status.PASS, steps=[step])


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as one:
        yield one


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A page of each kind, of records in which everything says nasty things, and that try to run a script."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        (folder / "code.json").write_bytes(code())
        flow = flow_beside([tree(call("a", CREATE), call("b"))], [tree(call("a"), call("b", CREATE))])
        run = hostile()
        run.transcripts.append(faulting())
        texts = {
            "run": render_html(run, folder),
            "series": render_series_html(series()),
            "compare": rendered(hostile(), hostile(), flow)[0],
        }
        found = {}
        for kind, text in texts.items():
            found[kind] = folder / f"{kind}.html"
            found[kind].write_text(text.replace("</body>", "<script>document.title = 'run'</script></body>"))
        yield found


@pytest.mark.parametrize("kind", KINDS)
def test_the_pages_own_script_runs_and_no_other(tab: Browser, pages: dict[str, Path], kind: str) -> None:
    """The policy names the script by its digest; what a guest put there is text."""
    tab.open(pages[kind])
    assert tab.evaluate("document.title") != "run"
    assert tab.evaluate("document.querySelectorAll('script').length") == 2
    assert tab.evaluate("document.querySelector('section[data-fold] button').textContent") == "unfold all"


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stands_out_or_is_squeezed(tab: Browser, pages: dict[str, Path], kind: str, width: int) -> None:
    """Wide tables scroll in themselves. Also when all is unfolded."""
    tab.open(pages[kind], width)
    for unfold in (False, True):
        if unfold:
            tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        wide, there = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= there
        assert tab.evaluate(SQUEEZED) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_words_can_be_read(tab: Browser, pages: dict[str, Path], kind: str, dark: bool) -> None:
    tab.open(pages[kind], dark=dark)
    assert tab.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert tab.evaluate(CONTRAST) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_keyboard_gets_everywhere(tab: Browser, pages: dict[str, Path], kind: str) -> None:
    tab.open(pages[kind])
    tab.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip", "past what is the same on each page"
    tab.press("Enter")
    assert tab.evaluate("location.hash") == "#verdict"
    # Each place that does something is come to once, in the order of the page, and can be seen to be there.
    reachable = "[...document.querySelectorAll('a[href], button, summary, [tabindex=\"0\"]')]"
    tab.evaluate("document.activeElement.blur(); scrollTo(0, 0); history.replaceState(null, '', location.pathname)")
    tab.open(pages[kind])
    wanted = tab.evaluate(f"{reachable}.filter(one => one.checkVisibility()).length")
    for number in range(wanted):
        tab.press("Tab")
        place = tab.evaluate(f"{reachable}.filter(one => one.checkVisibility()).indexOf(document.activeElement)")
        assert place == number, tab.evaluate("document.activeElement.outerHTML.slice(0, 200)")
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


@pytest.mark.parametrize("kind", KINDS)
def test_keys_fold_and_unfold(tab: Browser, pages: dict[str, Path], kind: str) -> None:
    tab.open(pages[kind])
    tab.evaluate("document.querySelector('summary').focus()")
    open_ = "document.activeElement.parentElement.open"
    first = tab.evaluate(open_)
    tab.press("Enter")
    assert tab.evaluate(open_) is not first
    tab.press(" ")
    assert tab.evaluate(open_) is first


def test_a_link_into_what_is_folded_unfolds_it(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["compare"])
    folded = json.dumps("details:not([open]) [id]")
    target = tab.evaluate(f"document.querySelector({folded})?.id ?? ''")
    assert target.startswith("rule-")
    seen = f"document.getElementById({json.dumps(target)}).checkVisibility()"
    assert not tab.evaluate(seen)
    moved = "new Promise(done => addEventListener('hashchange', () => setTimeout(done)))"
    tab.evaluate(f"location.hash = {json.dumps(target)}; {moved}")
    assert tab.evaluate(seen)
