# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""A config that changes ``type`` alone inherits no number that means another.

See ``docs/decisions/0008-names-of-parameters.md``.
"""

from __future__ import annotations

import importlib
import inspect

import pytest
from mmengine.registry import MODELS

from lt_losses_mm.losses import LOSSES, LongTailLoss
from lt_losses_mm.losses.arguments import SYNONYMS

SHARED = set(inspect.signature(LongTailLoss).parameters)

# Parameters of ours that mean what those of these losses mean.
SAME = {
    'EqualizedFocalLoss': {
        'FocalLoss': {'gamma', 'alpha'},
        'FocalCustomLoss': {'gamma', 'alpha'},
    },
    'EqualizedQualityFocalLoss': {
        'QualityFocalLoss': {'beta', 'activated'},
        'FocalLoss': {'activated'},
        'FocalCustomLoss': {'activated'},
    },
    'SeesawSoftmaxLoss': {'SeesawLoss': {'p', 'q'}},
    'SigmoidEqualizationLoss': {'EQLV2Loss': {'mu'}},
}
# Losses over no classes: no head has one of them where ours could be.
OF_NO_CLASSES = {
    'BalancedL1Loss',
    'BoundedIoULoss',
    'CosineSimilarityLoss',
    'GaussianFocalLoss',
    'SmoothL1Loss',
}
# Another meaning, and why it does not pass: tests below.
GUARDED = {
    ('EqualizedFocalLoss', 'VarifocalLoss'),
    ('EqualizedFocalLoss', 'TverskyLoss'),
    ('EqualizedFocalLoss', 'EQLV2Loss'),
    ('EqualizedQualityFocalLoss', 'TverskyLoss'),
}


def losses_of_hosts():
    found = {}
    for host in ('mmdet', 'mmpretrain', 'mmseg'):
        try:
            importlib.import_module(f'{host}.models')
        except ImportError:
            continue
        registry = importlib.import_module(f'{host}.registry').MODELS
        for name, cls in registry.module_dict.items():
            if name.endswith('Loss') and not issubclass(cls, LongTailLoss):
                found[host, name] = inspect.signature(cls).parameters
    return found


@pytest.mark.parametrize('cls', LOSSES, ids=lambda cls: cls.__name__)
def test_one_name_has_one_meaning(cls):
    own = set(inspect.signature(cls).parameters) - SHARED
    same = SAME.get(cls.__name__, {})
    for (host, name), theirs in losses_of_hosts().items():
        if name not in OF_NO_CLASSES and (cls.__name__, name) not in GUARDED:
            assert own & set(theirs) <= same.get(name, set()), (host, name)


def test_our_own_losses_share_names_of_one_meaning():
    meanings = {}
    for cls in LOSSES:
        for name in set(inspect.signature(cls).parameters) - SHARED:
            meanings.setdefault(name, set()).add(cls.__name__)
    several = {name for name, classes in meanings.items() if len(classes) > 1}
    assert several == {
        'bias_prior',
        'decay',
        'num_images',
        'scale_factor',
        'tau',
        'threshold',
    }


FOCAL = dict(use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)
QUALITY = dict(use_sigmoid=True, beta=2.0, loss_weight=1.0)
EQLV2 = dict(mu=0.8, alpha=4.0, gamma=12, num_classes=3)


@pytest.mark.parametrize(
    ('name', 'left', 'unknown'),
    [
        ('SigmoidEqualizationLoss', FOCAL, "'gamma', 'alpha'"),
        ('BalancedSigmoidLoss', FOCAL, "'gamma', 'alpha'"),
        ('EqualizationLoss', FOCAL, "'gamma', 'alpha'"),
        ('EqualizedQualityFocalLoss', FOCAL, "'gamma', 'alpha'"),
        ('SigmoidEqualizationLoss', EQLV2, "'alpha', 'gamma'"),
        ('EqualizedFocalLoss', QUALITY, "'beta'"),
        ('EqualizedFocalLoss', dict(alpha=0.3, beta=0.7), "'beta'"),
        ('VSLoss', dict(gamma=2.0, alpha=0.5), "'gamma', 'alpha'"),
        ('EqualizationSoftmaxLoss', dict(gamma=0.5), "'gamma'"),
        ('SoftmaxEqualizationLoss', dict(eps=1e-3), "'eps'"),
        ('SeesawSoftmaxLoss', dict(p=0.8, q=2.0, eps=1e-8), "'eps'"),
    ],
)
def test_what_another_loss_has_left_is_refused(name, left, unknown):
    with pytest.raises(
        TypeError, match=f'^{name}: unknown keys {unknown}, .*_delete_=True'
    ):
        MODELS.build(dict(left, type=f'lt_losses_mm.{name}'))


@pytest.mark.parametrize(
    ('name', 'left', 'said'),
    [
        (
            'SigmoidEqualizationLoss',
            dict(EQLV2, vis_grad=False, use_distributed=True),
            'write boost=4.0 for alpha, steepness=12 for gamma, if ',
        ),
        (
            'SeesawSoftmaxLoss',
            dict(p=0.8, q=2.0, eps=1e-8, num_classes=3, return_dict=True),
            'write score_floor=1e-08 for eps, if ',
        ),
        ('VSLoss', dict(gamma=0.2), 'write scale_power=0.2 for gamma, if '),
        (
            'BalancedSoftmaxLoss',
            dict(cls_num_list=[9, 1]),
            r'write class_counts=\[9, 1\] for cls_num_list, if ',
        ),
    ],
)
def test_another_name_of_a_parameter(name, left, said):
    with pytest.raises(TypeError, match=f'{said}.*repeat there what') as fault:
        MODELS.build(dict(left, type=f'lt_losses_mm.{name}'))
    assert 'misspelling' not in str(fault.value)


def test_other_names_are_of_parameters():
    classes = {cls.__name__: cls for cls in (LongTailLoss, *LOSSES)}
    for name, synonyms in SYNONYMS.items():
        known = set(inspect.signature(classes[name]).parameters)
        assert set(synonyms.values()) <= known
        assert not set(synonyms) & known


def test_what_means_the_same_is_inherited():
    focal = MODELS.build(dict(FOCAL, type='lt_losses_mm.EqualizedFocalLoss'))
    assert (focal.gamma, focal.alpha) == (2.0, 0.25)
    quality = dict(QUALITY, beta=1.5, activated=True)
    quality = MODELS.build(
        dict(quality, type='lt_losses_mm.EqualizedQualityFocalLoss')
    )
    assert (quality.beta, quality.activated) == (1.5, True)


@pytest.mark.parametrize('left', [EQLV2, dict(alpha=4.0)])
def test_what_means_another_is_out_of_range(left):
    left = {k: v for k, v in left.items() if k in ('alpha', 'gamma')}
    with pytest.raises(ValueError, match='alpha=4.0, expected a number in'):
        MODELS.build(dict(left, type='lt_losses_mm.EqualizedFocalLoss'))
    with pytest.raises(ValueError, match='beta=0.7, expected a number >= 1'):
        MODELS.build(
            dict(type='lt_losses_mm.EqualizedQualityFocalLoss', beta=0.7)
        )
