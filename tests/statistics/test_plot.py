# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What the picture of the gradient ratios shows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from mmengine.logging import HistoryBuffer

from lt_losses_mm.priors import frequency_thirds
from lt_losses_mm.statistics.plot import COLOURS, draw_ratio, to_image

pytest.importorskip('matplotlib')
# Nothing may be drawn at log(0), nor divided by 0.
# But not those of files that other tests left open.
pytestmark = [
    pytest.mark.filterwarnings('error'),
    pytest.mark.filterwarnings(
        'ignore::pytest.PytestUnraisableExceptionWarning'
    ),
]


def long_tail(num_classes):
    """Class counts and statistics of an imbalance factor of 1000."""
    counts = 5000 * 0.001 ** np.linspace(0, 1, num_classes)
    ratio = np.geomspace(2, 0.01, num_classes)
    return counts, dict(
        pos_grad=counts * ratio, neg_grad=counts, pos_count=2 * counts
    )


def history(name, **curves):
    return {
        f'statistics/{name}/{key}': HistoryBuffer(values, [1] * len(values))
        for key, values in curves.items()
    }


def points(axis, marker):
    """Positions of all markers of a kind, by colour."""
    found = {}
    for line in axis.get_lines():
        if line.get_marker() == marker and len(line.get_xdata()):
            found.setdefault(line.get_color(), []).extend(
                line.get_xydata().tolist()
            )
    return found


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize('num_classes', [1, 2, 3, 40, 1203])
def test_each_class_is_a_point(num_classes):
    counts, statistics = long_tail(num_classes)
    figure = draw_ratio('head.loss', statistics, class_counts=counts)
    (axis,) = figure.axes
    assert (axis.get_xscale(), axis.get_yscale()) == ('log', 'log')
    assert axis.get_xlabel() == 'class count in the training data'
    assert axis.get_ylabel() == 'gradient of positives / gradient of negatives'
    assert figure.texts[0].get_text() == (
        f'head.loss: gradient ratio of {num_classes} classes'
    )
    ratio = statistics['pos_grad'] / statistics['neg_grad']
    drawn = points(axis, 'o')
    thirds = frequency_thirds(counts)
    for group, index in thirds.items():
        assert np.allclose(
            drawn.get(COLOURS[group], np.empty((0, 2))),
            np.stack([counts, ratio], 1)[index],
        )
    assert legend(figure) == [f'{g}: {len(i)}' for g, i in thirds.items()]
    medians = [
        line.get_ydata()[0]
        for line in axis.get_lines()
        if line.get_color() == 'k'
    ]
    assert np.allclose(
        medians, [np.median(ratio[i]) for i in thirds.values() if len(i)]
    )
    (low, high), (left, right) = axis.get_ylim(), axis.get_xlim()
    assert low < min(ratio.min(), 1) and max(ratio.max(), 1) < high
    assert left < counts.min() and counts.max() < right


def test_classes_at_the_clamp_have_a_marker_of_their_own():
    counts, statistics = long_tail(40)
    saturated = statistics['pos_grad'] >= statistics['neg_grad']
    figure = draw_ratio(
        'loss', statistics, class_counts=counts, saturated=saturated
    )
    number = saturated.sum()
    assert 0 < number < 14
    hollow, dots = points(figure.axes[0], 'D'), points(figure.axes[0], 'o')
    assert list(hollow) == [COLOURS['head']]
    assert len(hollow[COLOURS['head']]) == number
    assert len(dots[COLOURS['head']]) == 14 - number
    assert f'at the clamp: {number}' in legend(figure)


def test_ratios_without_a_place_are_at_the_edges():
    counts, statistics = long_tail(40)
    statistics['neg_grad'][[0, 1]] = 0  # inf
    statistics['pos_grad'][10] = 0
    statistics['pos_grad'][20] = statistics['neg_grad'][20] = 0  # nan
    for key in ('pos_grad', 'pos_count'):
        statistics[key][[37, 38, 39]] = 0  # unseen
    statistics['neg_grad'][39] = 0
    counts[39] = 0  # not even in the data
    figure = draw_ratio('loss', statistics, class_counts=counts)
    axis = figure.axes[0]
    for marker, index, words in (
        ('^', [0, 1, 20], 'above the axis: 3'),
        ('v', [10], 'below the axis: 1'),
        ('|', [37, 38, 39], 'never seen positive: 3'),
    ):
        (drawn,) = points(axis, marker).values()
        assert [x for x, _ in drawn] == counts[index].tolist()
        assert all(0 < y < 1 for _, y in drawn)  # parts of the axis' height
        assert words in legend(figure)
    assert sum(map(len, points(axis, 'o').values())) == 40 - 7
    # They do not stretch the axis.
    assert axis.get_ylim()[1] < 10
    assert axis.get_xscale() == 'symlog'
    assert axis.get_xlim()[0] < 0
    # From 5 on, the least count above 0, the axis must be logarithmic.
    assert axis.xaxis.get_transform().linthresh == 1
    to_image(figure)


@pytest.mark.parametrize('class_counts', [None, np.empty(0)])
def test_positives_stand_in_for_class_counts(class_counts):
    _, statistics = long_tail(6)
    axis = draw_ratio('loss', statistics, class_counts=class_counts).axes[0]
    assert axis.get_xlabel() == 'positives seen in training (rows of logits)'
    x = [x for line in points(axis, 'o').values() for x, _ in line]
    assert x == statistics['pos_count'].tolist()


@pytest.mark.parametrize('counts', [None, np.full(4, 7.0)])
def test_before_training(counts):
    statistics = dict.fromkeys(
        ('pos_grad', 'neg_grad', 'pos_count'), np.zeros(4)
    )
    figure = draw_ratio('loss', statistics, class_counts=counts)
    assert 'never seen positive: 4' in legend(figure)
    to_image(figure)


def test_history():
    _, statistics = long_tail(6)
    log = history(
        'loss',
        ratio_head=[1.5, 1.2, 1.1],
        ratio_body=[0.9, 0.8, 0.7],
        ratio_tail=[0.3, 0.2],  # first seen before the second log
        saturated=[0.5, 0.25, 0.25],
        unseen=[0.5, 0.1, 0.0],
        min=[0.1, 0.1, 0.1],
        iter=[10, 20, 30],
    )
    log.update(history('loss_of_other_head', ratio_head=[7.0], iter=[10]))
    figure = draw_ratio('loss', statistics, log_scalars=log)
    _, medians, shares = figure.axes
    curves = {
        line.get_label(): line.get_xydata().T.tolist()
        for axis in (medians, shares)
        for line in axis.get_lines()
        if not line.get_label().startswith('_')
    }
    assert curves == {
        'head': [[10, 20, 30], [1.5, 1.2, 1.1]],
        'body': [[10, 20, 30], [0.9, 0.8, 0.7]],
        'tail': [[20, 30], [0.3, 0.2]],
        'at the clamp': [[10, 20, 30], [50, 25, 25]],
        'never seen positive': [[10, 20, 30], [50, 10, 0]],
    }
    assert medians.get_yscale() == 'log'
    assert medians.get_ylabel() == 'median ratio of a third'
    assert shares.get_xlabel() == 'iteration'
    assert shares.get_ylabel() == 'classes (%)'
    assert to_image(figure).shape == (500, 1100, 3)


def test_without_a_history_there_is_one_panel():
    _, statistics = long_tail(6)
    for log in ({}, history('other', ratio_head=[1.0], iter=[5])):
        assert len(draw_ratio('loss', statistics, log_scalars=log).axes) == 1


def test_image():
    import matplotlib.pyplot as plt

    # Other tests of this process may have left figures open.
    before = plt.get_fignums()
    counts, statistics = long_tail(1203)

    def image(_):
        return to_image(draw_ratio('loss', statistics, class_counts=counts))

    first = image(0)
    assert first.shape == (500, 640, 3) and first.dtype == np.uint8
    # Channels are RGB: body's orange has red and next to no blue.
    red, blue = first[..., 0].astype(int), first[..., 2].astype(int)
    assert ((red > 220) & (blue < 20)).any()
    assert not ((red < 20) & (blue > 220)).any()
    with ThreadPoolExecutor(2) as threads:
        for other in threads.map(image, range(2)):
            assert np.array_equal(first, other)
    assert plt.get_fignums() == before
