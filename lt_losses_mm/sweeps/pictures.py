# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The pictures of a report: matplotlib's SVG, made fit for a page.

Text stays text. What is black becomes the colour of the page's text, and
colours of methods become classes ``s0``, ``f0`` (stroke and fill) and so on,
which the style sheet of the page defines for light and dark. Nothing is left
that a strict content security policy forbids.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from typing import TYPE_CHECKING, Any, Callable, Mapping, NamedTuple, Sequence
from xml.etree import ElementTree

from .comparison import Claim, Difference, Estimate
from .results import needed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# So many colours does the style sheet define; then they come again, with
# another marker and another dash.
COLOURS = 8
MARKERS = 'osD^vP*X'
DASHES = ('-', '--', ':')
# More points of a curve or a cloud are not seen, but weigh.
MOST_POINTS, MOST_DOTS, BINS = 60, 150, 12
# Not black, which is what a fill is that matplotlib does not write down.
_INK = '#000001'
_GRID = '#0b0b0b'
_COLOUR = '#0a0a{:02x}'
_TAIL = _COLOUR.format(COLOURS)
_SETTINGS = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'lt_losses_mm',
    'text.parse_math': False,
    'axes.formatter.use_mathtext': False,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.linewidth': 0.8,
    'axes.labelpad': 6,
    'font.size': 10,
    'lines.linewidth': 1.5,
    'lines.markersize': 5,
    'path.simplify': True,
}


class Style(NamedTuple):
    """How a method is drawn; None stands for the colour of the text."""

    colour: int | None
    marker: str
    dash: str

    @property
    def ink(self) -> str:
        """What matplotlib is told, for :func:`_for_a_page` to find."""
        return _INK if self.colour is None else _COLOUR.format(self.colour)


def styles(methods: Sequence[str], baselines: set[str]) -> dict[str, Style]:
    """One style a method, the same in all pictures of a report."""
    found: dict[str, Style] = {}
    for method in methods:
        if method in baselines:
            n = sum(m in baselines for m in found)
            found[method] = Style(None, 'os^D'[n % 4], DASHES[n % 3])
        else:
            n = sum(m not in baselines for m in found)
            found[method] = Style(
                n % COLOURS,
                MARKERS[(n + n // COLOURS) % len(MARKERS)],
                DASHES[n // COLOURS % 3],
            )
    return found


def plain(text: str, most: int = 26) -> str:
    """A name as XML and a picture can hold it, long ones cut."""
    text = ''.join(c if c.isprintable() else '\ufffd' for c in text)
    return text if len(text) <= most else text[: most - 1] + '…'


def _picture(
    draw: Callable[[Axes], None],
    number: str,
    title: str,
    describe: str,
    size: tuple[float, float] = (4.6, 3.3),
) -> str:
    """An inline SVG.

    Args:
        draw: Draws on the axes.
        number: Tells the ids of the picture from those of others.
        title: Read by screen readers, and shown above the axes.
        describe: What is to be seen, for who does not see it.
        size: In units of 72 pixels.
    """
    matplotlib = needed('matplotlib')
    figure_of = needed('matplotlib.figure').Figure
    out = io.StringIO()
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # The browser has the glyphs that the font of matplotlib lacks.
        warnings.filterwarnings('ignore', message='.*[Gg]lyph')
        figure = figure_of(figsize=size, dpi=72, layout='constrained')
        axes = figure.add_subplot()
        draw(axes)
        axes.set_axisbelow(True)
        axes.grid(color=_GRID, lw=0.6)
        figure.suptitle(
            plain(title, 48), x=0.01, ha='left', size=11, weight='bold'
        )
        figure.savefig(
            out, format='svg', transparent=True, metadata={'Date': None}
        )
    return _for_a_page(out.getvalue(), number, title, describe)


def _for_a_page(svg: str, number: str, title: str, describe: str) -> str:
    root = ElementTree.fromstring(svg)
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', svg))
    for element in root.iter():
        for child in list(element):
            if child.tag.endswith(('metadata', 'style')):
                element.remove(child)
        element.tag = element.tag.rpartition('}')[2]
        element.text = element.text if element.tag == 'text' else None
        element.tail = None
        attributes = dict(element.attrib)
        element.attrib.clear()
        for name, value in attributes.items():
            name = name.rpartition('}')[2]
            if name == 'id':
                if value in used:
                    element.set('id', f'{number}-{value}')
            elif name == 'style':
                _declare(element, value)
            elif name == 'transform' and value.startswith('rotate(-0 '):
                continue
            elif name == 'href':
                element.set('href', f'#{number}-{value[1:]}')
            else:
                value = value.replace('url(#', f'url(#{number}-')
                element.set(name, _short(value))
    for name in ('width', 'height', 'version'):
        root.attrib.pop(name, None)
    if not title:
        root.set('aria-hidden', 'true')
        return ElementTree.tostring(root, encoding='unicode')
    root.set('role', 'img')
    root.set('aria-labelledby', f'{number}-t {number}-d')
    for place, (tag, text) in enumerate(
        (('title', title), ('desc', describe))
    ):
        element = ElementTree.Element(tag, {'id': f'{number}-{tag[0]}'})
        element.text = plain(text, 10_000)
        root.insert(place, element)
    return ElementTree.tostring(root, encoding='unicode')


def _declare(element: ElementTree.Element, style: str) -> None:
    """Write a ``style`` as attributes and classes, which any policy allows."""
    classes = []
    for part in style.split(';'):
        name, _, value = (x.strip() for x in part.partition(':'))
        if name == 'font':
            # Older versions of matplotlib write the short form.
            size = re.search(r'([\d.]+)px', value)
            element.set('font-size', size[1] if size else '10')
            if 'bold' in value or ' 700 ' in f' {value} ':
                element.set('font-weight', 'bold')
        elif name == 'font-size':
            element.set('font-size', value.replace('px', ''))
        elif name in ('stroke', 'fill') and value == _GRID:
            classes.append('grid')
        elif name in ('stroke', 'fill') and value in (_INK, '#000000'):
            element.set(name, 'currentColor')
        elif name in ('stroke', 'fill') and value.startswith('#0a0a'):
            classes.append(name[0] + str(int(value[5:], 16)))
        elif name.startswith('stroke') or name in (
            'fill',
            'fill-opacity',
            'opacity',
            'font-weight',
            'text-anchor',
        ):
            element.set(name, _short(value))
        elif name == 'clip-path':
            element.set(name, value)
    if classes:
        element.set('class', ' '.join(classes))


def _short(value: str) -> str:
    """Numbers with two digits behind the point, and no line breaks."""
    value = re.sub(
        r'-?\d+\.\d+', lambda m: f'{round(float(m[0]), 2):g}', value
    )
    return ' '.join(value.split())


def _limits(
    found: Sequence[Estimate | Difference], zero: bool = False
) -> tuple[float, float]:
    """Ends of an axis, so far apart that noise does not look like contrast.

    They hold all intervals, but no more than one span of the means, or half
    the median interval where that is longer, beside the means: with two runs
    an interval may be ten times as long as the others.

    Args:
        found: Means with their intervals.
        zero: Whether 0 has to be in between.
    """
    found = [e for e in found if not math.isnan(e.mean)]
    means = [e.mean for e in found] + [0.0] * (zero or not found)
    known = [e for e in found if not math.isnan(e.low)]
    low, high = min(means), max(means)
    most = high - low
    if known:
        # Half an interval, for one that is about as long on both sides.
        halves = sorted((e.high - e.low) / 2 for e in known)
        most = max(most, halves[len(halves) // 2])
    low = max(min([low, *(e.low for e in known)]), low - most)
    high = min(max([high, *(e.high for e in known)]), high + most)
    room = max(0.06 * (high - low), 1e-3 * max(abs(low), abs(high), 1e-3))
    return low - room, high + room


def _line(
    axes: Axes,
    found: Estimate | Difference,
    at: float,
    limits: tuple[float, float],
    upright: bool = False,
    **look: Any,
) -> None:
    """An interval, with an arrow where the picture ends before it does."""
    if math.isnan(found.low):
        return
    low, high = max(found.low, limits[0]), min(found.high, limits[1])
    ends = [(low, found.low < low, '<v'), (high, found.high > high, '>^')]
    points = [[low, high], [at, at]]
    axes.plot(*(points[::-1] if upright else points), **look)
    for end, cut, markers in ends:
        if cut:
            point = [[end], [at]]
            axes.plot(
                *(point[::-1] if upright else point),
                markers[upright],
                mec=look['color'],
                clip_on=False,
                **look,
            )


def differences(
    number: str, task: str, rows: Sequence[tuple[str, Claim | None, Claim]]
) -> str:
    """Differences to the baseline with their intervals, a line a method.

    Args:
        number: See :func:`_picture`.
        task: Its name.
        rows: Method, claim of the tail and claim overall, best first.
    """

    def draw(axes: Axes) -> None:
        limits = _limits(
            [
                c.difference
                for _, *claims in rows
                for c in claims
                if c is not None
            ],
            zero=True,
        )
        axes.set_xlim(limits)
        for i, (_, tail, overall) in enumerate(rows):
            for claim, shift, filled in (
                (overall, -0.17, True),
                (tail, 0.17, False),
            ):
                if claim is None or math.isnan(claim.difference.mean):
                    continue
                found = claim.difference
                ink = _INK if filled else _TAIL
                _line(axes, found, i + shift, limits, color=ink)
                axes.plot(
                    [found.mean],
                    [i + shift],
                    'o' if filled else 'D',
                    color=ink,
                    mec=ink,
                )
        axes.axvline(0, color=_INK, lw=1)
        axes.set_yticks(
            range(len(rows)), [plain(method, 24) for method, *_ in rows]
        )
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel('points over the baseline')

    told = '; '.join(
        f'{method} {overall.difference.mean:+.2f}'
        for method, _, overall in rows
    )
    return _picture(
        draw,
        number,
        f'{plain(task, 24)}: difference to baseline',
        'Difference of each method to the baseline, circles overall and '
        'diamonds in the tail, with 95 % intervals; those that end in an '
        f'arrow are longer. Overall: {told}.',
        (5.2, 1.0 + 0.34 * max(len(rows), 3)),
    )


def trade_off(
    number: str,
    task: str,
    points: Mapping[str, tuple[Estimate, Estimate]],
    style: Mapping[str, Style],
) -> str:
    """Tail against head, a mark a method with its intervals.

    Args:
        number: See :func:`_picture`.
        task: Its name.
        points: Method -> (head, tail).
        style: Of each method.
    """

    def draw(axes: Axes) -> None:
        across = _limits([head for head, _ in points.values()])
        up = _limits([tail for _, tail in points.values()])
        axes.set(xlim=across, ylim=up)
        for method, (head, tail) in points.items():
            look: Any = dict(color=style[method].ink, lw=0.8, alpha=0.4)
            _line(axes, head, tail.mean, across, **look)
            _line(axes, tail, head.mean, up, upright=True, **look)
            axes.plot(
                [head.mean],
                [tail.mean],
                style[method].marker,
                color=style[method].ink,
                mec=style[method].ink,
                ms=8,
            )
        axes.set(xlabel='head', ylabel='tail')

    told = '; '.join(
        f'{m}: head {h.mean:.3g}, tail {t.mean:.3g}'
        for m, (h, t) in points.items()
    )
    return _picture(
        draw,
        number,
        f'{task}: head and tail',
        'Result in the tail against result in the head, a mark a method; '
        'further up and to the right is better. Thin lines are 95 % '
        f'intervals; those that end in an arrow are longer. {told}.',
    )


def classes(
    number: str,
    task: str,
    counts: pd.Series,
    table: pd.DataFrame,
    style: Mapping[str, Style],
    dotted: Sequence[str],
) -> str:
    """Result of classes against how often they occur in training.

    Lines are means of bins of as many classes each; single classes are dots,
    of some methods and of at most ``MOST_DOTS`` classes.

    Args:
        number: See :func:`_picture`.
        task: Its name.
        counts: By class, the most frequent first.
        table: Classes by methods.
        style: Of each method.
        dotted: The methods with dots.
    """
    numpy = needed('numpy')
    table = table.loc[counts.index]
    shown = numpy.unique(
        numpy.linspace(0, len(counts) - 1, MOST_DOTS).round().astype(int)
    )
    # A class without any training sample has a place on the log axis too.
    least = counts[counts > 0].min() if (counts > 0).any() else 1.0
    x = counts.clip(lower=least / 2).to_numpy()
    parts = numpy.array_split(
        numpy.arange(len(counts)), min(BINS, len(counts))
    )

    def draw(axes: Axes) -> None:
        for method in table.columns:
            values = table[method].to_numpy()
            look = style[method]
            if method in dotted:
                axes.plot(
                    x[shown],
                    values[shown],
                    look.marker,
                    color=look.ink,
                    mec=look.ink,
                    ms=3,
                    alpha=0.45,
                )
            middle, mean = [], []
            for part in parts:
                if not numpy.isnan(values[part]).all():
                    middle.append(numpy.exp(numpy.log(x[part]).mean()))
                    mean.append(numpy.nanmean(values[part]))
            axes.plot(middle, mean, look.dash, color=look.ink)
        axes.set_xscale('log')
        _plain_ticks(axes)
        axes.set(xlabel='count in the training data', ylabel='result')

    return _picture(
        draw,
        number,
        f'{task}: classes by frequency',
        f'Result of {len(counts)} classes against their count in the '
        f'training data. Lines: means of {len(parts)} groups of classes. '
        f'Dots: {len(shown)} single classes of '
        f'{" and ".join(dotted)}. All values are in the table of classes.',
    )


def curves(
    number: str,
    title: str,
    lines: Mapping[str, pd.Series],
    style: Mapping[str, Style],
    ylabel: str,
    log: bool = False,
) -> str:
    """One line a method over the steps of training.

    Args:
        number: See :func:`_picture`.
        title: Of the picture.
        lines: Method -> values by step.
        style: Of each method.
        ylabel: Of the values.
        log: Whether the values are drawn on a log axis.
    """
    numpy = needed('numpy')

    def draw(axes: Axes) -> None:
        for method, line in lines.items():
            line = line[line > 0] if log else line
            if not len(line):
                continue
            kept = numpy.unique(
                numpy.linspace(0, len(line) - 1, MOST_POINTS)
                .round()
                .astype(int)
            )
            line = line.iloc[kept]
            look = style[method]
            axes.plot(
                line.index,
                line.to_numpy(),
                look.dash,
                color=look.ink,
                marker=look.marker,
                markevery=max(1, len(line) // 5),
                mec=look.ink,
                ms=4,
            )
        if log:
            axes.set_yscale('log')
            _plain_ticks(axes, 'y')
        axes.set(xlabel='step', ylabel=ylabel)

    told = '; '.join(
        f'{m}: {line.iloc[-1]:.3g}' for m, line in lines.items() if len(line)
    )
    return _picture(
        draw,
        number,
        title,
        f'{ylabel} over the steps of training, means over the runs. Last '
        f'values: {told}.',
    )


def _plain_ticks(axes: Axes, which: str = 'x') -> None:
    """Ticks of a log axis without powers, which would need formulas."""
    ticker = needed('matplotlib.ticker')
    axis: Any = axes.xaxis if which == 'x' else axes.yaxis
    low, high = axis.get_view_interval()
    if high < 5 * low:
        axis.set_major_locator(ticker.MaxNLocator(5))
    else:
        subs = (1, 2, 5) if high < 100 * low else (1,)
        axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=7))
    axis.set_major_formatter(ticker.StrMethodFormatter('{x:g}'))
    axis.set_minor_formatter(ticker.NullFormatter())


def swatch(style: Style, number: str) -> str:
    """The mark and line of a method, for a legend beside the pictures."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 0], style.dash, color=style.ink)
        axes.plot(
            [0.5], [0], style.marker, color=style.ink, mec=style.ink, ms=7
        )
        axes.set(xlim=(0, 1), ylim=(-1, 1))
        axes.set_axis_off()

    matplotlib = needed('matplotlib')
    figure = needed('matplotlib.figure').Figure(figsize=(0.44, 0.22), dpi=72)
    out = io.StringIO()
    with matplotlib.rc_context(_SETTINGS):
        draw(figure.add_axes((0.0, 0.0, 1.0, 1.0)))
        figure.savefig(
            out, format='svg', transparent=True, metadata={'Date': None}
        )
    # The name of the method is beside it.
    return _for_a_page(out.getvalue(), number, '', '')
