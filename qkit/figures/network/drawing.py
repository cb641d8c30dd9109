"""The network as a still picture: SVG that follows the page's colours and prints, and the same in matplotlib.

Networks are far taller than wide, so the picture is cut between layers into columns, read from left to right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from qkit.figures.network.layout import Box, Edge, Layout
from qkit.figures.network.quantities import Painted
from qkit.style import INK, LINES, MUTED, NARROW_COLOUR, WIDE_COLOUR, short

#: Units between columns, and around the picture.
_GUTTER, _EDGE = 34.0, 6.0
#: Letters that fit a box.
_LETTERS = 25
_FEW = 0.06
#: Points of letters that can still be read.
_LEAST_FONT = 3.0
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


def draw(layout: Layout, painted: Painted, *, ax: Axes, aspect: float = 2.4) -> Axes:
    """The same into axes, for where no page is; letters are left out where they would be too small to read."""
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.patches import Rectangle

    cut = columns(layout, column_count(layout, aspect))
    wide, tall = layout.width + _GUTTER, max(bottom - top for top, bottom in cut)
    span = (-_EDGE, len(cut) * wide - _GUTTER + _EDGE)
    figure: Any = ax.figure
    inches = figure.get_size_inches() * [ax.get_position().width, ax.get_position().height]
    font = min(72 * min(inches[0] / (span[1] - span[0]), inches[1] / (tall + 2 * _EDGE)) * 14.0, 7.0)
    frames, boxes, fills = [], [], []
    for i, (top, bottom) in enumerate(cut):
        across = i * wide
        for k, box in enumerate(layout.boxes):
            if box.opened and _within(box, top, bottom):
                y, end = max(box.top, top), min(box.top + box.height, bottom)
                frames.append(Rectangle((box.left + across, y - top), box.width, end - y))
            elif not box.opened and cut.of(box.top) == i:
                boxes.append(Rectangle((box.left + across, box.top - top), box.width, box.height))
                fills.append(_fill(painted.shares[k]))
                for y, text, weight in ((15, short(box.title, _LETTERS), "bold"), (33, _under(box, painted.texts[k]), "normal")):
                    if font >= _LEAST_FONT:
                        place = box.left + across + 7, box.top - top + y
                        ax.text(*place, text, fontsize=font, fontweight=weight, color=INK, va="center", zorder=4)
        inside = [edge for edge in layout.edges if edge.points[0][1] < bottom and edge.points[-1][1] > top]
        lines = LineCollection([[(x + across, y - top) for x, y in edge.points] for edge in inside], colors=MUTED, zorder=2)
        lines.set_linewidth([0.9 if edge.skip else 0.6 for edge in inside])
        ax.add_collection(lines, autolim=False)
        lines.set_clip_path(Rectangle((across - _EDGE, 0), wide, bottom - top, transform=ax.transData))
    ax.add_collection(PatchCollection(frames, facecolor="none", edgecolor=LINES, lw=0.6, zorder=1), autolim=False)
    ax.add_collection(PatchCollection(boxes, facecolor=fills, edgecolor=MUTED, lw=0.6, zorder=3), autolim=False)
    ax.set_xlim(*span)
    ax.set_ylim(tall + _EDGE, -_EDGE)
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.set_title(f"{painted.title}: {painted.words}", fontsize=8, loc="left")
    return ax


def _fill(share: float | None) -> tuple[float, ...]:
    """A box's colour on paper, without what is behind it: lines end under the box."""
    if share is None:
        return (1.0, 1.0, 1.0)
    strength = _STRONGEST * (_FEW + (1 - _FEW) * abs(share))
    return tuple(1 - strength + strength * part for part in to_rgb(WIDE_COLOUR if share < 0 else NARROW_COLOUR))
