"""The network as a still picture: SVG that follows the page's colours and prints, and the same in matplotlib.

Networks are far taller than wide, so the picture is cut between layers into columns, read from left to right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from qkit.figures.network.layout import Box, Edge, Layout
from qkit.figures.network.quantities import Painted
from qkit.style import INK, LINES, MUTED, NARROW_COLOUR, WIDE_COLOUR, short

#: Units between columns, and around the picture.
_GUTTER, _EDGE = 34.0, 6.0
#: Letters that fit a box.
_LETTERS = 25
_FEW = 0.06
#: How strong the strongest colour is, on paper and on a dark page: ink has to stay readable on it.
_STRONGEST, _STRONGEST_IN_THE_DARK = 0.75, 0.5


@dataclass(frozen=True)
class Columns:
    """Cuts from top to bottom: a column shows what lies between two of them."""

    cuts: tuple[float, ...]

    def of(self, top: float) -> int:
        """The column that something that begins there is in."""
        return max(sum(cut <= top for cut in self.cuts[1:-1]), 0)

    def __iter__(self) -> Iterator[tuple[float, float]]:
        return iter(zip(self.cuts, self.cuts[1:], strict=False))

    def __len__(self) -> int:
        return len(self.cuts) - 1


def columns(layout: Layout, count: int) -> Columns:
    """About so many columns of like height, cut where no box is, and as few edges as can be."""
    spans = sorted((box.top, box.top + box.height) for box in layout.boxes if not box.opened)
    free: list[float] = []
    floor = 0.0
    for top, bottom in spans:
        if top > floor:
            free.append((floor + top) / 2)
        floor = max(floor, bottom)
    cuts = [-_EDGE]
    for i in range(1, count):
        aim = layout.height * i / count
        reach = layout.height / count / 4
        near = [y for y in free if abs(y - aim) <= reach and y > cuts[-1]]
        if near:
            cuts.append(min(near, key=lambda y: (_crossing(layout.edges, y), abs(y - aim))))
    return Columns((*cuts, layout.height + _EDGE))


def _crossing(edges: Sequence[Edge], y: float) -> int:
    return sum(edge.points[0][1] < y < edge.points[-1][1] for edge in edges)


def column_count(layout: Layout, aspect: float) -> int:
    """So many columns that the whole is about `aspect` times as wide as high."""
    best = min(range(1, 13), key=lambda n: abs(aspect - n * (layout.width + _GUTTER) / (layout.height / n)))
    return max(best, 1)


def svg(layout: Layout, painted: Painted, *, aspect: float = 1.6, label: str = "the network") -> Markup:
    """SVG to be put into a page: its colours are the variables ``--qkit-`` of `qkit.style.COLOURS`, its rules its own.

    Every box has its whole name and its figure as a title, which a pointer brings up and a screen reader reads.
    """
    cut = columns(layout, column_count(layout, aspect))
    wide = layout.width + 2 * _EDGE
    tall = max(bottom - top for top, bottom in cut)
    total = len(cut) * wide + (len(cut) - 1) * (_GUTTER - 2 * _EDGE)
    parts = []
    for i, (top, bottom) in enumerate(cut):
        inner = [_svg_box(box, painted, k) for k, box in enumerate(layout.boxes) if box.opened and _within(box, top, bottom)]
        inner += [_svg_edge(edge) for edge in layout.edges if edge.points[0][1] < bottom and edge.points[-1][1] > top]
        inner += [_svg_box(box, painted, k) for k, box in enumerate(layout.boxes) if not box.opened and cut.of(box.top) == i]
        parts.append(
            Markup('<svg x="{}" y="0" width="{}" height="{}" viewBox="{} {} {} {}">{}</svg>').format(
                _n(i * (wide + _GUTTER - 2 * _EDGE)), _n(wide), _n(bottom - top),
                _n(-_EDGE), _n(top), _n(wide), _n(bottom - top), Markup("").join(inner),
            )
        )  # fmt: skip
    return Markup('<svg class="network" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">{}</svg>').format(
        _n(total), _n(tall), _n(total), _n(tall), f"{label}, coloured by {painted.title}", Markup("").join(parts)
    )


#: Rules for the SVG; `--qkit-strongest` is how strong the strongest colour is.
SVG_RULES = f"""\
.network text {{ font: 600 12px system-ui, sans-serif; fill: var(--qkit-ink); }}
.network .value {{ font-weight: 400; }}
.network .kind {{ font-weight: 400; fill: var(--qkit-muted); }}
.network .frame {{ fill: none; stroke: var(--qkit-lines); }}
.network .box {{ fill: var(--qkit-page); stroke: var(--qkit-muted); }}
.network .several {{ stroke-width: 2; }}
.network .none {{ stroke-dasharray: 4 3; }}
.network .worse {{ fill: var(--qkit-narrow); }}
.network .better {{ fill: var(--qkit-wide); }}
.network .way {{ fill: none; stroke: var(--qkit-muted); }}
.network .skip {{ stroke-width: 1.6; }}
.network {{ max-width: 100%; height: auto; --qkit-strongest: {_STRONGEST}; }}
@media screen and (prefers-color-scheme: dark) {{ .network {{ --qkit-strongest: {_STRONGEST_IN_THE_DARK}; }} }}"""


def key(painted: Painted) -> Markup:
    """The legend as HTML: a square of each colour and what it stands for."""
    square = Markup(
        '<span class="key"><svg class="network" viewBox="0 0 12 12" width="12" height="12" aria-hidden="true">'
        '<rect class="box" x="0.5" y="0.5" width="11" height="11"/>{}</svg> {}</span> '
    )
    place = Markup('x="0.5" y="0.5" width="11" height="11"')
    return Markup("").join(square.format(_filled(share, place), text) for share, text in painted.legend)


def _filled(share: float, place: Markup) -> Markup:
    return Markup('<rect class="{}" rx="4" {} style="fill-opacity:calc(var(--qkit-strongest)*{:.3f})"/>').format(
        "better" if share < 0 else "worse", place, _FEW + (1 - _FEW) * abs(share)
    )


def _within(box: Box, top: float, bottom: float) -> bool:
    return box.top < bottom and box.top + box.height > top


def _svg_box(box: Box, painted: Painted, k: int) -> Markup:
    title = Markup("<title>{}</title>").format(f"{box.key}\n{painted.title}: {painted.texts[k]}")
    place = Markup('x="{}" y="{}" width="{}" height="{}"').format(_n(box.left), _n(box.top), _n(box.width), _n(box.height))
    if box.opened:
        head = Markup('<text class="kind" x="{}" y="{}">{}</text>').format(_n(box.left + 10), _n(box.top + 16), box.title)
        return Markup('<g>{}<rect class="frame" rx="6" {}/>{}</g>').format(title, place, head)
    share = painted.shares[k]
    fill = Markup("") if share is None else _filled(share, place)
    looks = f"box{' several' if box.block else ''}{' none' if share is None else ''}"
    words = Markup('<text x="{}" y="{}">{}</text><text class="value" x="{}" y="{}">{}</text>').format(
        _n(box.left + 9), _n(box.top + 19), short(box.title, _LETTERS),
        _n(box.left + 9), _n(box.top + 36), _under(box, painted.texts[k]),
    )  # fmt: skip
    return Markup('<g>{}<rect class="{}" rx="4" {}/>{}{}</g>').format(title, looks, place, fill, words)


def _under(box: Box, text: str) -> str:
    longer = f"{len(box.nodes)} operations: {text}"
    return longer if box.block and len(longer) <= _LETTERS + 3 else short(text, _LETTERS + 3)


def _svg_edge(edge: Edge) -> Markup:
    way = f"M{_n(edge.points[0][0])} {_n(edge.points[0][1])}" + "".join(
        f"L{_n(x1)} {_n(y1)}"
        if abs(x1 - x0) < 0.01
        else f"C{_n(x0)} {_n((y0 + y1) / 2)} {_n(x1)} {_n((y0 + y1) / 2)} {_n(x1)} {_n(y1)}"
        for (x0, y0), (x1, y1) in zip(edge.points, edge.points[1:], strict=False)
    )
    x, y = edge.points[-1]
    tip = f"M{_n(x - 3.5)} {_n(y - 6)}L{_n(x)} {_n(y)}L{_n(x + 3.5)} {_n(y - 6)}" if edge.arrow else ""
    return Markup('<path class="way{}" d="{}{}"/>').format(" skip" if edge.skip else "", way, tip)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def draw(layout: Layout, painted: Painted, *, ax: Axes, aspect: float = 2.4, font: float = 6.0) -> Axes:
    """The same into axes, for where no page is."""
    from matplotlib.patches import FancyBboxPatch, Rectangle

    cut = columns(layout, column_count(layout, aspect))
    wide = layout.width + _GUTTER
    for i, (top, bottom) in enumerate(cut):
        move = i * wide, -top
        for k, box in enumerate(layout.boxes):
            if box.opened and _within(box, top, bottom):
                y, end = max(box.top, top), min(box.top + box.height, bottom)
                ax.add_patch(
                    Rectangle((box.left + move[0], y + move[1]), box.width, end - y, fill=False, ec=LINES, lw=0.6, zorder=1)
                )
            elif not box.opened and cut.of(box.top) == i:
                share = painted.shares[k]
                place = (box.left + move[0], box.top + move[1])
                colour = "none" if share is None else WIDE_COLOUR if share < 0 else NARROW_COLOUR
                look: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=4", "ec": MUTED, "lw": 0.6}
                ax.add_patch(FancyBboxPatch(place, box.width, box.height, fc="white", zorder=3, **look))
                ax.add_patch(
                    FancyBboxPatch(
                        place, box.width, box.height, fc=colour, zorder=3,
                        alpha=_STRONGEST * (_FEW + (1 - _FEW) * abs(share or 0.0)), **look,
                    )
                )  # fmt: skip
                for y, text, weight in ((15, short(box.title, _LETTERS), "bold"), (33, _under(box, painted.texts[k]), "normal")):
                    ax.text(
                        place[0] + 7, place[1] + y, text, fontsize=font, fontweight=weight, color=INK, va="center", zorder=4,
                        clip_on=True,
                    )  # fmt: skip
        for edge in layout.edges:
            if edge.points[0][1] < bottom and edge.points[-1][1] > top:
                moved = [(x + move[0], y + move[1]) for x, y in edge.points]
                (line,) = ax.plot(*zip(*moved, strict=True), color=MUTED, lw=0.9 if edge.skip else 0.6, zorder=2)
                line.set_clip_path(Rectangle((move[0] - _EDGE, 0), wide, bottom - top, transform=ax.transData))
    ax.set_xlim(-_EDGE, len(cut) * wide - _GUTTER + _EDGE)
    ax.set_ylim(max(bottom - top for top, bottom in cut) + _EDGE, -_EDGE)
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.set_title(f"{painted.title}: {painted.words}", fontsize=8, loc="left")
    return ax
