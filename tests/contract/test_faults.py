"""Mistakes in a config or in the data: each message names the way out."""

import pytest
import torch


@pytest.mark.parametrize(
    'counts, message',
    [
        ([5, 3, -1], r'class_counts=\[5, 3, -1\].*numbers >= 0.*class 2.*Fix'),
        ([5, float('nan'), 1], r'class_counts=.*finite.*nan for class 1.*Fix'),
        ([5, float('inf')], r'class_counts=.*finite.*inf for class 1.*Fix'),
        ([0, 0, 0], r'class_counts=\[0, 0, 0\].*above zero.*Fix'),
        ([], r'class_counts=\[\].*one number per class.*Fix'),
        ([[1, 2]], r'class_counts=.*shape \(1, 2\).*Fix'),
        ('lvis', r"class_counts='lvis'.*benchmark.*lvis_v1.*Fix.*'lvis_v"),
        ('no_such_benchmark', r"class_counts='no_such_benchmark'.*Fix"),
        (dict(a=1), r'class_counts=.*Fix.*order of the labels'),
    ],
)
def test_class_counts(loss_type, build, counts, message):
    with pytest.raises(ValueError, match=f'(?s){message}'):
        build(loss_type, class_counts=counts)


def test_a_missing_file(loss_type, build):
    with pytest.raises(
        FileNotFoundError, match="class_counts='no/such.json'.*Fix"
    ):
        build(loss_type, class_counts='no/such.json')


def test_counts_and_num_classes_disagree(loss_type, build, counts):
    with pytest.raises(ValueError, match='5 counts.*num_classes=7.*Fix'):
        build(loss_type, class_counts=counts, num_classes=7)
    with pytest.raises(ValueError, match='num_classes=4.*Fix.*background'):
        build(loss_type, class_counts=counts, num_classes=4)
    loss = build(loss_type, class_counts='auto', num_classes=7)
    with pytest.raises(ValueError, match='num_classes=7'):
        loss.set_class_counts([1, 2])


@pytest.mark.parametrize('columns', [3, 4, 8])
@pytest.mark.parametrize('size', [(), (2, 2)], ids=str)
def test_logits_of_another_number_of_classes(loss_type, build, columns, size):
    labels = torch.zeros(2, *size, dtype=torch.long)
    with pytest.raises(
        ValueError, match=f'num_classes=5.*columns.*got {columns}.*head'
    ):
        build(loss_type)(torch.zeros(2, columns, *size), labels)


def test_a_map_has_no_background_column(loss_type, build):
    """One count too few must not turn the last class into background."""
    labels = torch.zeros(2, 3, 3, dtype=torch.long)
    with pytest.raises(ValueError, match='num_classes=5.*got 6'):
        build(loss_type)(torch.zeros(2, 6, 3, 3), labels)


@pytest.mark.parametrize('size', [(), (2, 2)], ids=str)
@pytest.mark.parametrize('label', [-1, 6, 254])
def test_label_out_of_range(loss_type, build, label, size):
    labels = torch.zeros(2, *size, dtype=torch.long)
    labels[1] = label
    with pytest.raises(
        ValueError, match=f'label {label} is out of range.*Check'
    ):
        build(loss_type)(torch.zeros(2, 5, *size), labels)


def test_background_label_in_a_classifier(softmax_type, build):
    with pytest.raises(ValueError, match='label 5 is out of range'):
        build(softmax_type)(torch.zeros(2, 5), torch.tensor([0, 5]))


def test_background_label_in_a_map(loss_type, build):
    """There it is a wrong class of the data set."""
    with pytest.raises(ValueError, match='label 5 is out of range'):
        build(loss_type)(
            torch.zeros(2, 5, 1, 1), torch.tensor([0, 5]).view(2, 1, 1)
        )


@pytest.mark.parametrize('shape', [(3,), (2, 1), (1,)], ids=str)
def test_labels_of_another_shape(loss_type, build, shape):
    with pytest.raises(ValueError, match='labels of shape'):
        build(loss_type)(torch.zeros(2, 5), torch.zeros(shape).long())


def test_float_index_labels(loss_type, build):
    with pytest.raises(ValueError, match='index labels must be integers'):
        build(loss_type)(torch.zeros(2, 5), torch.zeros(2))


@pytest.mark.parametrize(
    'key, value, expected',
    [
        ('num_classes', '5', 'int >= 1'),
        ('loss_name', 'balanced', 'loss_'),
        ('count_unit', 'boxes', 'instance'),
    ],
)
def test_options(loss_type, build, counts, key, value, expected):
    with pytest.raises(ValueError, match=f'{key}=.*{value}.*{expected}'):
        build(loss_type, class_counts=counts, **{key: value})


@pytest.mark.parametrize(
    'value, expected',
    [
        (-1, '>= 0'),
        ('high', 'number'),
        (float('nan'), 'finite'),
        (True, 'number'),
    ],
)
def test_tau(tau_type, build, value, expected):
    with pytest.raises(ValueError, match=f'tau=.*{value}.*{expected}'):
        build(tau_type, tau=value)


@pytest.mark.parametrize('value', [0, -0.1, 1.5, 'slow', float('nan')])
def test_decay(running_type, build, value):
    with pytest.raises(ValueError, match=f'decay=.*{value}.*number'):
        build(running_type, decay=value)


@pytest.mark.parametrize('value', [0, 1, -0.1, '0.01', float('nan')])
def test_bias_prior(sigmoid_type, build, value):
    with pytest.raises(ValueError, match=f'bias_prior=.*{value}.*expected'):
        build(sigmoid_type, bias_prior=value)


@pytest.mark.parametrize('value', ['none', 1.5, 1, True])
def test_background(loss_type, loss_class, build, value):
    policies = loss_class(loss_type).background_policies
    expected = f'one of .*{policies[0]!r}'
    if float in policies:
        expected += r'.*\(0, 1\)'
    with pytest.raises(ValueError, match=f'background=.*{value}.*{expected}'):
        build(loss_type, background=value)


def test_a_policy_of_another_loss(loss_type, loss_class, build):
    known = loss_class(loss_type).background_policies
    for policy in {
        'keep_odds',
        'objectness',
        'foreground_rows',
        'negatives',
    } - set(known):
        with pytest.raises(ValueError, match=f"background='{policy}'.*one of"):
            build(loss_type, background=policy)
    if float not in known:
        with pytest.raises(ValueError, match=r'background=0\.9.*one of'):
            build(loss_type, background=0.9)


def test_without_background_it_is_the_first_policy(
    loss_type, loss_class, build
):
    (first, *_) = loss_class(loss_type).background_policies
    assert build(loss_type).background.key == first


def test_use_sigmoid_of_another_loss(loss_type, build):
    loss = build(loss_type)
    build(loss_type, use_sigmoid=loss.use_sigmoid)
    with pytest.raises(
        ValueError, match='use_sigmoid=.*write use_sigmoid=.*_delete_=True'
    ):
        build(loss_type, use_sigmoid=not loss.use_sigmoid)


def test_unknown_reduction_override(loss_type, build, rows):
    with pytest.raises(ValueError, match="reduction_override='max'.*'sum'"):
        build(loss_type)(*rows(), reduction_override='max')


def test_class_weight_in_a_sigmoid_loss(sigmoid_type, build):
    with pytest.raises(ValueError, match='class_weight=.*remove it'):
        build(sigmoid_type, class_weight=[1.0] * 5)


@pytest.mark.parametrize('length', [4, 5, 7])
def test_class_weight_of_another_length(
    softmax_type, build, one_softmax, rows, length
):
    """Logits have 6 columns: with 5, background rows would have none."""
    loss = build(
        softmax_type,
        class_weight=[1.0] * length,
        **one_softmax(softmax_type),
    )
    with pytest.raises(ValueError, match='class_weight.*6'):
        loss(*rows(columns=6, labels=6))


@pytest.mark.parametrize('size', [(), (2, 2)], ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.int64], ids=str)
def test_soft_labels_where_the_method_has_none(index_type, build, size, dtype):
    """Integers of the logits' shape are one-hot labels."""
    labels = torch.zeros(2, 5, *size, dtype=dtype)
    labels[:, 3] = 1
    with pytest.raises(
        ValueError, match=f'{index_type}: soft labels.*index labels.*Mixup'
    ):
        build(index_type)(torch.zeros(2, 5, *size), labels)


def test_labels_with_a_quality(loss_type, loss_class, build):
    """Only quality focal losses know what it is."""
    logits, labels = torch.zeros(2, 5), torch.tensor([0, 5])
    pair = labels, torch.tensor([0.5, 0.0])
    loss = build(loss_type)
    if loss_class(loss_type).takes_quality:
        assert loss(logits, pair).isfinite()
        return
    with pytest.raises(
        TypeError, match='labels of type tuple.*EqualizedQualityFocalLoss'
    ):
        loss(logits, pair)


@pytest.mark.parametrize('size', [(), (2, 2)], ids=str)
def test_number_of_classes_never_told(running_type, build, size):
    loss = build(running_type, num_classes=None)
    assert not hasattr(loss, 'num_classes')
    labels = torch.zeros(2, *size, dtype=torch.long)
    with pytest.raises(RuntimeError, match='num_classes=None.*heads.*give it'):
        loss(torch.zeros(2, 5, *size), labels)
    loss.set_num_classes(5)
    assert loss(torch.zeros(2, 5, *size), labels) > 0
    with pytest.raises(ValueError, match='num_classes=5.*expected 4'):
        loss.set_num_classes(4)
