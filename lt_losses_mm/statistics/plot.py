# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""A picture of the gradient ratios of a loss: ``docs/gradient_ratio.md``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping

import numpy as np
from mmengine.logging import HistoryBuffer

from ..priors import frequency_thirds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which the colour-blind can tell apart.
COLOURS = dict(head='#0072B2', body='#E69F00', tail='#D55E00')
_GREY = '#555555'
# Ratios beyond are drawn at the edge: of a class without any negatives the
# ratio is a division by nearly nothing, and would squeeze all others.
_LIMITS = 1e-8, 1e4


def draw_ratio(
    name: str,
    statistics: Mapping[str, np.ndarray],
    *,
    class_counts: np.ndarray | None = None,
    saturated: np.ndarray | None = None,
    log_scalars: Mapping[str, HistoryBuffer] | None = None,
) -> Figure:
    """Draw the gradient ratio of each class against its frequency.

    With a history, the medians of frequent, middling and rare classes over
    the training are drawn beside it.

    Args:
        name (str): Of the loss in its model; for the title and the history.
        statistics (Mapping[str, ndarray]): ``pos_grad``, ``neg_grad`` and
            ``pos_count``, each (C,).
        class_counts (ndarray, optional): (C,), frequency in the training
            data. If None or empty, ``pos_count`` stands in for it.
        saturated (ndarray, optional): (C,), bool; classes at the clamp.
        log_scalars (Mapping[str, HistoryBuffer], optional): Those of the
            ``MessageHub``.

    Returns:
        Figure: Not known to pyplot, so there is nothing to close.
    """
    from matplotlib.figure import Figure

    curves = _curves(name, log_scalars or {})
    figure = Figure(
        figsize=(11 if curves else 6.4, 5), dpi=100, layout='constrained'
    )
    if not curves:
        left = figure.add_subplot()
    else:
        grid = figure.add_gridspec(2, 2, height_ratios=(2, 1))
        left = figure.add_subplot(grid[:, 0])
        medians = figure.add_subplot(grid[0, 1])
        shares = figure.add_subplot(grid[1, 1], sharex=medians)
        _draw_history(medians, shares, curves)
    _draw_classes(left, statistics, class_counts, saturated)
    legend = figure.legend(
        *left.get_legend_handles_labels(),
        loc='outside lower center',
        ncol=7 if curves else 2,
        frameon=False,
        fontsize=9,
        title='number of classes (thirds by frequency; lines: their medians)',
        title_fontsize=9,
    )
    for handle in legend.get_lines():
        handle.set(markersize=6, alpha=1)
    num_classes = len(statistics['pos_count'])
    figure.suptitle(
        f'{name}: gradient ratio of {num_classes} classes', fontsize=11
    )
    return figure


def to_image(figure: Figure) -> np.ndarray:
    """The picture as RGB, (H, W, 3), uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()


def _draw_classes(
    axis: Axes,
    statistics: Mapping[str, np.ndarray],
    class_counts: np.ndarray | None,
    saturated: np.ndarray | None,
) -> None:
    pos_grad, neg_grad = statistics['pos_grad'], statistics['neg_grad']
    seen = statistics['pos_count'] > 0
    known = class_counts is not None and len(class_counts) > 0
    counts = np.asarray(class_counts if known else statistics['pos_count'])
    if saturated is None:
        saturated = np.zeros(len(seen), dtype=bool)
    with np.errstate(divide='ignore', invalid='ignore'):
        ratio = pos_grad / neg_grad
    low, high = seen & (ratio < _LIMITS[0]), seen & ~(ratio <= _LIMITS[1])
    inside = seen & ~low & ~high

    size = float(np.clip(160 / max(len(seen), 1), 3, 8))
    style: dict[str, Any] = dict(ls='', ms=size)
    style['alpha'] = 0.6 if len(seen) > 200 else 0.9
    for group, index in frequency_thirds(counts).items():
        style['color'] = COLOURS[group]
        dots = index[(inside & ~saturated)[index]]
        axis.plot(
            counts[dots],
            ratio[dots],
            'o',
            mew=0,
            label=f'{group}: {len(index)}',
            **style,
        )
        hollow = index[(inside & saturated)[index]]
        axis.plot(counts[hollow], ratio[hollow], 'D', mfc='none', **style)
        drawn = index[seen[index]]
        if len(drawn):
            span = counts[drawn].min(), counts[drawn].max()
            axis.plot(span, [np.median(ratio[drawn])] * 2, 'k-', lw=1.5)
    if (inside & saturated).any():
        label = f'at the clamp: {(inside & saturated).sum()}'
        axis.plot([], [], 'D', color=_GREY, mfc='none', label=label)
    for chosen, height, marker, label in (
        (~seen, 0.015, '|', 'never seen positive'),
        (high, 0.97, '^', 'above the axis'),
        (low, 0.05, 'v', 'below the axis'),
    ):
        if chosen.any():
            axis.plot(
                counts[chosen],
                np.full(chosen.sum(), height),
                marker,
                color=_GREY,
                ms=7,
                label=f'{label}: {chosen.sum()}',
                # The edges are places of the picture, not ratios.
                transform=axis.get_xaxis_transform(),
            )
    axis.axhline(1, color=_GREY, lw=1, ls='--', zorder=1)

    bounds = np.append(ratio[inside], 1)
    margin = max((bounds.max() / bounds.min()) ** 0.08, 1.2)
    axis.set_ylim(bounds.min() / margin, bounds.max() * margin)
    axis.set_yscale('log')
    _plain_ticks(axis.yaxis)
    if counts.any():
        least, most = counts[counts > 0].min(), counts.max()
        if counts.all():
            axis.set(xscale='log', xlim=(least / 1.3, most * 1.3))
            _plain_ticks(axis.xaxis)
        else:
            # From 0 to this power of ten the axis is linear.
            linear = 10 ** np.floor(np.log10(least))
            axis.set_xscale('symlog', linthresh=linear, linscale=0.3)
            axis.set_xlim(-0.3 * linear, most * 1.3)
    axis.set(
        xlabel='class count in the training data'
        if known
        else 'positives seen in training (rows of logits)',
        ylabel='gradient of positives / gradient of negatives',
    )
    axis.grid(alpha=0.3, which='major')


def _plain_ticks(axis: Axis) -> None:
    """Ticks of a log axis written 0.5, not 5 x 10^-1."""
    from matplotlib import ticker

    low, high = axis.get_view_interval()
    if high < 5 * low:
        axis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    else:
        subs = (1, 2, 5) if high < 100 * low else (1,)
        axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.StrMethodFormatter('{x:g}'))
    axis.set_minor_formatter(ticker.NullFormatter())


def _curves(
    name: str, log_scalars: Mapping[str, HistoryBuffer]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Iterations and values, by the last word of their key."""
    prefix = f'statistics/{name}/'
    found = {
        key[len(prefix) :]: np.asarray(buffer.data[0], dtype=np.float64)
        for key, buffer in log_scalars.items()
        if key.startswith(prefix)
    }
    iters = found.pop('iter', np.empty(0))
    # The curve of a group begins when its first class has been seen.
    return {
        key: (iters[-len(values) :], values)
        for key, values in found.items()
        if len(iters) >= len(values) > 0
    }


def _draw_history(
    medians: Axes,
    shares: Axes,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    look: dict[str, Any] = dict(lw=2, ms=3)
    if max(len(x) for x, _ in curves.values()) <= 30:
        look['marker'] = 'o'
    for (group, colour), line in zip(COLOURS.items(), ('-', '--', ':')):
        if f'ratio_{group}' in curves:
            x, y = curves[f'ratio_{group}']
            medians.plot(x, y, line, color=colour, label=group, **look)
    medians.axhline(1, color=_GREY, lw=1, ls='--', zorder=1)
    medians.set_yscale('log')
    _plain_ticks(medians.yaxis)
    medians.set_ylabel('median ratio of a third')
    medians.tick_params(labelbottom=False)
    medians.legend(frameon=False, fontsize=9)
    for key, label, line in (
        ('saturated', 'at the clamp', '-'),
        ('unseen', 'never seen positive', ':'),
    ):
        if key in curves:
            x, y = curves[key]
            shares.plot(x, 100 * y, line, color='black', label=label, **look)
    shares.set_ylim(-4, 104)
    shares.locator_params(axis='x', integer=True)
    shares.set(xlabel='iteration', ylabel='classes (%)')
    # Shares are near 0 or 100 % most of the time.
    shares.legend(loc='center right', edgecolor='none', fontsize=9)
    for axis in (medians, shares):
        axis.grid(alpha=0.3, which='major')
