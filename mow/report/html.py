"""The pieces of HTML that a report is made of: text is escaped here, unless a name says that it is HTML already."""

from collections.abc import Sequence
from html import escape


def absent(why: str) -> str:
    """What stands where something cannot be shown."""
    return f'<p class="absent">{escape(why)}</p>'


def note(text: str) -> str:
    """How to read what follows."""
    return f'<p class="note">{escape(text)}</p>'


def scroll(html: str) -> str:
    """A box of its own for what may be wider than the page."""
    return f'<div class="scroll">{html}</div>'


def table(head: Sequence[str], rows_html: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """Args: words: columns that hold words; those after them hold numbers and are set flush right."""

    def line(tag: str, cells_html: Sequence[str]) -> str:
        kinds = ("" if i < words else ' class="number"' for i in range(len(cells_html)))
        cells = (f"<{tag}{kind}>{html}</{tag}>" for kind, html in zip(kinds, cells_html, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    body = "".join(line("td", row) for row in rows_html)
    heading = line("th", [escape(name) for name in head])
    return scroll(f"<table><thead>{heading}</thead><tbody>{body}</tbody></table>")


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Args: entries: (classes of a mark in the charts, what it means)."""
    samples = []
    for mark, text in entries:
        path = "M11 6h0" if mark.startswith("dot") else "M0 6H22"
        sample = f'<svg width="22" height="12" aria-hidden="true"><path class="{mark}" d="{path}"/></svg>'
        samples.append(f"<li>{sample}{escape(text)}</li>")
    return f'<ul class="legend">{"".join(samples)}</ul>'


def figure(title: str, picture_html: str, detail: str = "") -> str:
    """A picture under its title and a line of detail."""
    below = f"<p>{escape(detail)}</p>" if detail else ""
    return f"<figure><figcaption><h3>{escape(title)}</h3>{below}</figcaption>{picture_html}</figure>"


def grid(figures_html: Sequence[str]) -> str:
    """As many small charts side by side as the page is wide."""
    # Five or six in rows of three look better than a row of four and a rest; one or two may be larger.
    thirds = " thirds" if len(figures_html) in (1, 2, 3, 5, 6, 9) else ""
    return f'<div class="grid-of-panels{thirds}">{"".join(figures_html)}</div>'


def bar(share: float, text: str) -> str:
    """A share of 1 as a bar, and a number in words beside it."""
    width = f"{100 * min(1.0, max(0.0, share)):.1f}%"
    return f'<span class="bar"><span style="width:{width}"></span></span> {escape(text)}'
