"""HTML elements of a report. Text is escaped here; arguments whose names end in _html are HTML already."""

from collections.abc import Sequence
from html import escape

from mow.report.charts import STYLES, Panel, draw


def note(text: str, kind: str = "note") -> str:
    """A paragraph."""
    return f'<p class="{kind}">{escape(text)}</p>'


def absent(why: str) -> str:
    """A sentence in place of something that cannot be shown."""
    return note(why, "absent")


def scroll(html: str) -> str:
    """A box that scrolls sideways where its content is wider than the page."""
    return f'<div class="scroll">{html}</div>'


def table(head: Sequence[str], rows_html: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """A table. Args: words: number of columns that hold words; those after them hold numbers, set flush right."""

    def line(tag: str, cells_html: Sequence[str]) -> str:
        kinds = ("" if i < words else ' class="number"' for i in range(len(cells_html)))
        cells = (f"<{tag}{kind}>{html}</{tag}>" for kind, html in zip(kinds, cells_html, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    heading, body = line("th", [escape(name) for name in head]), "".join(line("td", row) for row in rows_html)
    return scroll(f"<table><thead>{heading}</thead><tbody>{body}</tbody></table>")


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """A legend. Args: entries: (style of charts.STYLES, meaning)."""
    items = []
    for style, text in entries:
        variable, dashes = STYLES[style]
        line = f"stroke: var(--{variable}); stroke-dasharray: {','.join(map(str, dashes)) or 'none'}"
        path = "M11 6h0" if style == "dots" else "M0 6H22"
        sample = f'<path class="{style}" style="{line}" d="{path}"/>'
        items.append(f'<li><svg width="22" height="12" aria-hidden="true">{sample}</svg>{escape(text)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def figure(title: str, picture_html: str, detail: str = "") -> str:
    """A picture under its title and a line of detail."""
    below = f"<p>{escape(detail)}</p>" if detail else ""
    return f"<figure><figcaption><h3>{escape(title)}</h3>{below}</figcaption>{picture_html}</figure>"


def chart(panel: Panel, detail: str = "") -> str:
    """A panel under its title and a line of detail."""
    return figure(panel.title, draw(panel), detail)


def grid(figures_html: Sequence[str]) -> str:
    """Small charts, as many side by side as the page is wide."""
    # Five or six look better in rows of three than as four and a rest; one or two may be larger.
    thirds = " thirds" if len(figures_html) in (1, 2, 3, 5, 6, 9) else ""
    return f'<div class="grid-of-panels{thirds}">{"".join(figures_html)}</div>'


def bar(share: float, text: str) -> str:
    """A share of 1 as a bar, with a text beside it."""
    width = f"{100 * min(1.0, max(0.0, share)):.1f}%"
    return f'<span class="bar"><span style="width:{width}"></span></span> {escape(text)}'


def folded(summary: str, html: str) -> str:
    """A box that opens at a click."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"
