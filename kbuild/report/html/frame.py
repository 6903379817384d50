"""What every page is put into: the policy, the one style and script, and how a value becomes text."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kbuild.report import clean, gist

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent
MAX_EVIDENCE = 200


def render_page(template: str, **context: Any) -> str:
    """The page of a template that lies here, with these values."""
    style, script = ((_HERE / name).read_text("utf-8") for name in ("style.css", "script.js"))
    policy = f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; base-uri 'none'"
    return _environment().get_template(template).render(style=style, script=script, policy=policy, **context)


def read_data(path: Path) -> dict[str, Any] | None:
    """A file of a run, None where there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return None


def _environment() -> Environment:
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["lines"] = lambda texts, limit=MAX_EVIDENCE: [*clean.lines(list(texts), limit)]
    environment.filters["digests"] = gist.short_digests
    environment.filters["whole"] = lambda text: markupsafe.escape(clean.visible(text))
    environment.globals["title"] = gist.title
    environment.globals["place"] = gist.place
    environment.globals["order_of"] = gist.order_of
    return environment


def _shown(value: Any) -> Any:
    """Each value that a template prints: text of others is of bounded length, and moves nothing on the page."""
    return value if hasattr(value, "__html__") else clean.one_line(str(value)) if value is not None else ""


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
