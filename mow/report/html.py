"""HTML elements of a report. Text is escaped here; arguments whose names end in _html are HTML already."""

import math
from collections.abc import Sequence
from html import escape


def digits(value: float | None) -> str:
    """A number with about three digits, - for None and values that are not finite."""
    if value is None or not math.isfinite(value):
        return "-"
    if abs(value) >= 99.95 or isinstance(value, int):
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"


def note(text: str, kind: str = "note") -> str:
    """A paragraph of CSS class `kind`."""
    return f'<p class="{kind}">{escape(text)}</p>'


def absent(why: str) -> str:
    """A sentence in place of something that cannot be shown."""
    return note(why, "absent")


def scroll(html: str) -> str:
    """A box that scrolls sideways where its content is wider than the page."""
    return f'<div class="scroll">{html}</div>'


def table(head: Sequence[str], rows_html: Sequence[Sequence[str]]) -> str:
    """A table; columns after the first are set flush right."""
    heading = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rows_html)
    return scroll(f"<table><thead><tr>{heading}</tr></thead><tbody>{lines}</tbody></table>")


def figure(title: str, picture_html: str, detail: str = "") -> str:
    """A picture under its title and a line of detail."""
    return f"<figure><h3>{escape(title)}</h3>{note(detail) if detail else ''}{picture_html}</figure>"


def grid(figures_html: Sequence[str]) -> str:
    """Small charts, as many side by side as the page is wide."""
    return f'<div class="grid">{"".join(figures_html)}</div>'


def folded(summary: str, html: str) -> str:
    """A box that opens at a click."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"
