# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The recipes, against what was published or what the hosts have.

A named leaf differs from its recipe in the loss alone, as test_tree.py checks;
the recipes are checked here.
"""

from __future__ import annotations

import re
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.registry import MODELS

import lt_losses_mm  # noqa: F401

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FRAGMENTS = CONFIGS / '_base_/losses'
LVIS = CONFIGS / 'detection/lvis'
ADE = CONFIGS / 'segmentation/ade20k'


def of_host(host, name, parse):
    if find_spec(host) is None:
        pytest.skip(f'{host} is not installed')
    (package,) = find_spec(host).submodule_search_locations
    return parse(Path(package, '.mim/configs', f'{name}.py'))


# -------------------------------------------------------- classification
CROP = dict(type='RandomResizedCrop', scale=224)
FLIP = dict(type='RandomFlip', prob=0.5, direction='horizontal')
JITTER = dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4)
SHORT = dict(type='ResizeEdge', scale=256, edge='short')
CENTER = dict(type='CenterCrop', crop_size=224)
PAD = dict(type='RandomCrop', crop_size=32, padding=4)
# mean, deviation, augmentations of training, of testing
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
IMAGES = *IMAGENET, [CROP, FLIP, JITTER], [SHORT, CENTER]
SPECIES = [0.466, 0.471, 0.38], [0.195, 0.194, 0.192]
JITTERED = *SPECIES, [CROP, FLIP, JITTER], [SHORT, CENTER]
SPECIES = *SPECIES, [CROP, FLIP], [SHORT, CENTER]
SMALL = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.201], [PAD, FLIP], []


def recipe(epochs, batch, lr, decay, images=IMAGES, rates=None, **more):
    """What ``recipe_of`` finds; without ``rates`` they are a cosine."""
    cosine = dict(type='CosineAnnealingLR', T_max=epochs, by_epoch=True)
    sgd = dict(type='SGD', lr=lr, momentum=0.9, weight_decay=decay)
    wrapper = dict(optimizer=sgd, **more.pop('wrapper', {}))
    alpha = more.pop('mixup', None)
    augments = alpha and dict(type='Mixup', alpha=alpha)
    usual = dict(head='LinearClsHead', frozen=None, start=None, drop_path=None)
    usual.update(epochs=epochs, batch=batch, optim_wrapper=wrapper, hooks=None)
    usual.update(rates=rates or [cosine], images=images, augments=augments)
    return {**usual, **more}


def steps(first, second, gamma, **more):
    milestones = [first, second]
    return dict(type='MultiStepLR', milestones=milestones, gamma=gamma, **more)


# A fifth of the rate in the first epoch, and all of it in the fifth.
WARM = dict(type='LinearLR', start_factor=0.2, by_epoch=True, begin=0, end=5)
CIFAR = 200, 128, 0.1, 2e-4, SMALL, [WARM, steps(160, 180, 0.01)]
SHORT_CIFAR = 60, 128, 0.1, 2e-4, SMALL, [WARM, steps(48, 54, 0.01)]
BF16 = dict(type='lt_losses_mm.Bfloat16OptimWrapper')
R152 = dict(type='Pretrained', checkpoint='torchvision://resnet152')
LAST_BLOCK = dict(frozen=3, start=R152)
NORMED = 'ArcFaceClsHead', 30.0, 0.0  # scale, margins
DOUBLE = 2 * 256, 2 * 0.1  # batch, rate
SLOW = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.01))))
PLACES = 30, 128, 0.1, 5e-4, IMAGES, [steps(10, 20, 0.1, by_epoch=True)]
# The first pattern that fits a leaf. Batch and rate of MiSLAS are doubled.
RECIPES = {
    # facebookresearch/classifier-balancing: data/dataloader.py and config/
    # ImageNet_LT/feat_uniform.yaml; the head: ModelTC/United-Perception:
    # configs/cls/resnet/res50_softmax_eql.yaml
    'imagenet-lt/*-normed_*-90e-*': recipe(90, 512, 0.2, 5e-4, head=NORMED),
    # dvlab-research/MiSLAS: config/imagenet/imagenet_resnet50_stage1_mixup
    'imagenet-lt/*-180e-mixup-*': recipe(180, *DOUBLE, 5e-4, mixup=0.2),
    # classifier-balancing as above; the epochs of MiSLAS
    'imagenet-lt/*-180e-*': recipe(180, 512, 0.2, 5e-4),
    # classifier-balancing as above; ResNet-10: jiawei-ren/BalancedMetaSoftmax-
    # Classification: config/ImageNet_LT/balanced_softmax_resnet10.yaml
    'imagenet-lt/res*-90e-*': recipe(90, 512, 0.2, 5e-4),
    # dvlab-research/MiSLAS: config/places/places_resnet152_stage1_mixup.yaml
    'places-lt/*-90e-mixup-*': recipe(
        90, *DOUBLE, 5e-4, mixup=0.2, **LAST_BLOCK
    ),
    # zhmiao/OpenLongTailRecognition-OLTR: config/Places_LT/stage_1.py: 0.1 for
    # the classifier, 0.001 for the features
    'places-lt/*-30e-*': recipe(*PLACES, wrapper=SLOW, **LAST_BLOCK),
    # dvlab-research/MiSLAS: config/ina2018/ina2018_resnet50_stage1_mixup.yaml
    # and datasets/ina2018.py
    'inaturalist2018/*-200e-mixup-*': recipe(
        200, *DOUBLE, 1e-4, JITTERED, mixup=0.2
    ),
    # classifier-balancing: config/iNaturalist18/feat_unifrom.yaml; the epochs
    # of MiSLAS
    'inaturalist2018/*-200e-*': recipe(200, 512, 0.2, 1e-4, SPECIES),
    'inaturalist2018/*-90e-*': recipe(90, 512, 0.2, 1e-4, SPECIES),
    # kaidic/LDAM-DRW: cifar_train.py; alpha: dvlab-research/MiSLAS:
    # config/cifar100/cifar100_imb001_stage1_mixup.yaml
    'cifar-lt/*-200e-mixup-*': recipe(*CIFAR, mixup=1.0),
    'cifar-lt/*-200e-*': recipe(*CIFAR),
    # The same, epochs and steps times 0.3.
    'cifar-lt/*-60e-bf16-*': recipe(*SHORT_CIFAR, wrapper=BF16),
}
FOLDERS = sorted({pattern.split('/')[0] for pattern in RECIPES})
BASELINES = [
    leaf
    for folder in FOLDERS
    for leaf in sorted((CONFIGS / 'classification').glob(f'{folder}/*.py'))
    if '-cross-entropy_' in leaf.stem and not leaf.stem.startswith('vit')
]


def name_of(leaf):
    return f'{leaf.parent.name}/{leaf.stem}'


def pattern_of(leaf):
    return next((p for p in RECIPES if fnmatch(name_of(leaf), p)), None)


def recipe_of(config):
    def augmentations(split):
        every = config[f'{split}_dataloader']['dataset']['pipeline']
        ends = 'LoadImageFromFile', 'PackInputs'
        return [step for step in every if step['type'] not in ends]

    model, pixels = config['model'], config['data_preprocessor']
    backbone, head = model['backbone'], model['head']
    normed = head['type'], head.get('scale'), head.get('margins')
    head = normed if 'scale' in head else head['type']
    return dict(
        epochs=config['train_cfg']['max_epochs'],
        batch=config['auto_scale_lr']['base_batch_size'],
        optim_wrapper=config['optim_wrapper'],
        rates=config['param_scheduler'],
        images=(
            [round(x / 255, 5) for x in pixels['mean']],
            [round(x / 255, 5) for x in pixels['std']],
            augmentations('train'),
            augmentations('test'),
        ),
        augments=model.get('train_cfg', {}).get('augments'),
        head=head,
        frozen=backbone.get('frozen_stages'),
        start=backbone.get('init_cfg'),
        drop_path=backbone.get('drop_path_rate'),
        hooks=config.get('custom_hooks'),
    )


def test_every_recipe_has_leaves():
    assert {pattern_of(leaf) for leaf in BASELINES} == set(RECIPES)


@pytest.mark.parametrize('leaf', BASELINES, ids=name_of)
def test_classification_has_the_published_recipe(leaf, parse):
    assert recipe_of(parse(leaf)) == RECIPES[pattern_of(leaf)]


def test_vit_is_fine_tuned_as_the_host_does_but_for_livt(parse):
    """LiVT fine-tunes as MAE does, whose recipe MMPretrain has.

    So are mean and deviation: those of MMPretrain's pre-training, where LiVT
    has its own.
    """
    name = 'mae/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k'
    theirs = recipe_of(of_host('mmpretrain', name, parse))
    del theirs['start']['checkpoint']
    leaves = (CONFIGS / 'classification').glob('*/vit-*-cross-entropy_*')
    for leaf in leaves:
        ours = recipe_of(parse(leaf))
        wrapper, host = ours['optim_wrapper'], theirs['optim_wrapper']
        # XuZhengzhuo/LiVT: exp/finetune/ImageNet-LT/vit_base_224/args.txt
        optimizer = dict(type='AdamW', lr=8e-3, weight_decay=0.05)
        assert wrapper['optimizer'] == optimizer
        keys = wrapper['paramwise_cfg'].pop('custom_keys')
        assert wrapper['paramwise_cfg'] == dict(layer_decay_rate=0.75)
        # The rest of the host's keys are of other backbones.
        no_decay = host['paramwise_cfg']['custom_keys']
        assert keys == {key: no_decay[key] for key in keys}
        assert set(keys) == {'.ln', '.bias', '.cls_token', '.pos_embed'}
        assert wrapper['constructor'] == host['constructor']
        assert ours['batch'] == 64 * 4 * 8  # of a GPU, GPUs, accumulated
        assert ours['start'].pop('checkpoint').endswith('_imagenet-lt.pth')
        for key in set(ours) - {'optim_wrapper', 'batch'}:
            assert ours[key] == theirs[key], key


# ---------------------------------------------------------------- losses
PRIOR = dict(tau=1.0, background='keep_odds')  # docs/decisions/0001-background
EQLV2 = dict(
    steepness=12.0, mu=0.8, boost=4.0, background='objectness', decay=1.0
)
SOFTMAX = dict(PRIOR, indicator='pos', floor=1e-4, decay=1.0)
EFL = dict(scale_factor=8.0, decay=1.0)
BIAS = dict(initial_probability=0.001)  # eql.detectron2, eqlv2, BALMS
ROWS = dict(PRIOR, background='foreground_rows', **BIAS)
LOSSES = {
    'cross_entropy': {},
    # Lin et al., 2017, section 4; Li et al., 2020, section 4.
    'focal': dict(gamma=2.0, alpha=0.25),
    'quality_focal': dict(beta=2.0),
    # jiawei-ren/BalancedMetaSoftmax-Classification: loss/
    'balanced_softmax': PRIOR,
    'balanced_softmax_objectness': dict(PRIOR, background='objectness'),
    # The samplers of the hosts' RoI heads take a quarter of objects at most.
    'balanced_softmax_background_prior': dict(PRIOR, background=1 - 0.25),
    'balanced_sigmoid': dict(PRIOR, **BIAS),
    # Majiker/BalancedMetaSoftmax-InstanceSeg: projects/BALMS/balms/
    'balanced_sigmoid_foreground_rows': ROWS,
    # The threshold is ours: docs/methods/equalization.md. The probability is
    # of jiawei-ren/BalancedMetaSoftmax-Classification: EQV1SoftmaxLoss.py.
    'equalization': dict(threshold=100, use_sigmoid=True, **BIAS),
    'equalization_softmax': dict(threshold=100, drop_probability=0.9),
    # tztztztztz/eqlv2: mmdet/models/losses/eql.py. The images are those with
    # objects: 1 / 1.7624e-5 in eql.detectron2, lvis_v0_5_categories.py.
    'equalization_lvis_v0.5': dict(threshold=1.77e-3 * 56740, **BIAS),
    'equalization_lvis_v1': dict(threshold=1.1e-3 * 99388, **BIAS),
    # tztztztztz/eqlv2: mmdet/models/losses/eqlv2.py
    'sigmoid_equalization': dict(EQLV2, **BIAS),
    # ModelTC/United-Perception: up/tasks/cls/models/losses/cls_loss.py
    'softmax_equalization': SOFTMAX,
    # ModelTC/United-Perception: up/tasks/det/plugins/efl/models/losses/
    'equalized_focal': dict(EFL, gamma=2.0, alpha=0.25),
    'equalized_quality_focal': dict(EFL, beta=2.0),
    # Wang et al., 2021, section 4; mmdet/models/losses/seesaw_loss.py
    'seesaw': dict(p=0.8, q=2.0, score_floor=1e-2, background='objectness'),
}


def test_every_loss_is_listed():
    """Here, or its constants are tested where the loss itself is."""
    elsewhere = {
        path.stem[len('test_') :]
        for path in (CONFIGS.parent / 'tests' / 'losses').glob('test_*.py')
        if f'_base_/losses/{path.stem[len("test_") :]}.py' in path.read_text()
    }
    found = {path.stem for path in FRAGMENTS.glob('*.py')}
    assert found - elsewhere == set(LOSSES)


@pytest.mark.parametrize('fragment', LOSSES)
def test_losses_have_the_published_constants(fragment, parse):
    config = parse(FRAGMENTS / f'{fragment}.py')['lt_loss']
    assert config.pop('_delete_')
    loss = SimpleNamespace(**config)
    if config['type'].startswith('lt_losses_mm.'):
        loss = MODELS.build(config)
        if 'class_counts' not in config:
            loss.set_num_classes(1203)
    expected = dict(LOSSES[fragment], loss_weight=1.0)
    found = {
        key: getattr(loss.statistics if key == 'decay' else loss, key)
        for key in expected
    }
    if 'background' in found:
        found['background'] = loss.background.key
    assert found == expected


# ------------------------------------------------- twins among the hosts'
TRAINING = 'model train_dataloader val_dataloader optim_wrapper '
TRAINING += 'param_scheduler train_cfg auto_scale_lr custom_hooks'
BOX = {'model.bbox_head.num_classes': 1203}
# mmdet's configs/lvis: 300 objects an image, of scores over 1e-4.
DENSE = {
    **BOX,
    'model.test_cfg.score_thr': 1e-4,
    'model.test_cfg.max_per_img': 300,
    'train_dataloader.dataset.dataset.pipeline.1.with_mask': None,
}
MASKS = {
    'model.roi_head.bbox_head.num_classes': 1203,
    'model.roi_head.mask_head.num_classes': 1203,
    'model.test_cfg.rcnn.score_thr': 1e-4,
    'model.test_cfg.rcnn.max_per_img': 300,
}
# mmdet's _base_/schedules/schedule_2x.py
TWICE = {
    **DENSE,
    'param_scheduler.1.end': 24,
    'param_scheduler.1.milestones': [16, 22],
    'train_cfg.max_epochs': 24,
}
# There, the warm-up begins at a third.
FCOS = {**TWICE, 'param_scheduler.0.start_factor': 0.001}
# ModelTC/United-Perception: configs/det/efl/efl_improved_baseline_r50_2x_rfs
BIASED = dict(type='Normal', name='atss_cls', std=0.01, bias_prob=0.001)
INIT = dict(type='Normal', layer='Conv2d', std=0.01, override=BIASED)
ANCHORS = 'model.bbox_head.anchor_generator.'
IMPROVED = {
    **TWICE,
    'model.backbone.norm_cfg.requires_grad': False,
    ANCHORS + 'scales': [6, 8],
    ANCHORS + 'octave_base_scale': None,
    ANCHORS + 'scales_per_octave': None,
    'model.bbox_head.loss_bbox.loss_weight': 1.0,
    'model.bbox_head.init_cfg': INIT,
    'model.train_cfg.assigner.topk': 18,
    'model.test_cfg.nms_pre': 6000,
    'model.test_cfg.nms.iou_threshold': 0.5,
    'optim_wrapper.optimizer.lr': 16 * 0.00125,  # a rate for each image
    'optim_wrapper.clip_grad': dict(max_norm=35, norm_type=2),
    'param_scheduler.0.by_epoch': True,
    'param_scheduler.0.end': 1,
    'param_scheduler.0.convert_to_iter_based': True,
}
# The host trains Cascade Mask R-CNN on v1 alone.
V05 = {
    f'model.roi_head.{head}.num_classes': 1230
    for head in ('bbox_head.0', 'bbox_head.1', 'bbox_head.2', 'mask_head')
}
# With the classifier of all other losses.
V05.update(
    {f'model.roi_head.bbox_head.{i}.cls_predictor_cfg': None for i in range(3)}
)
# Leaves -> the host's config, and where they differ from it.
TWINS = {
    '(mask-rcnn_r.*_fpn)_cross-entropy_sample1e-3-(ms-1x.*|.*v0.5)': (
        r'lvis/\1_sample1e-3_\2',
        {},
    ),
    r'(.*mask-rcnn_r\d+_fpn)_seesaw(|-normed-mask)_(.*-2x_lvis-v1)': (
        r'seesaw_loss/\1_seesaw-loss\2_\3',
        {},
    ),
    r'(cascade.*_fpn)_cross-entropy_(sample1e-3.*-2x)_lvis-v0.5': (
        r'seesaw_loss/\1_seesaw-loss_\2_lvis-v1',
        V05,
    ),
    r'(mask-rcnn_swin.*_fpn)_cross-entropy_.*-(ms-crop-3x)_.*': (
        r'swin/\1_\2_coco',
        MASKS,
    ),
    '(retinanet_r50_fpn)_focal_.*-2x_.*': (r'retinanet/\1_2x_coco', DENSE),
    '(atss_r50_fpn)_focal_.*-2x_.*': (r'atss/\1_1x_coco', TWICE),
    'atss-improved(_.*_fpn)_focal_.*-2x_.*': (
        r'atss/atss\1_1x_coco',
        IMPROVED,
    ),
    '(gfl_r50_fpn)_quality-focal_.*-2x_.*': (r'gfl/\1_1x_coco', TWICE),
    '(fcos_.*)_focal_.*-2x_.*': (
        r'fcos/\1-center-normbbox-centeronreg-giou_1x_coco',
        FCOS,
    ),
    '(dino-4scale_r50)_focal_.*-(8xb2-12e)_.*': (r'dino/\1_\2_coco', BOX),
}
# Two spellings, by version of mmdet, of what is the default in both.
DEFAULTS = ('temperature', 20), ('tempearture', 20)
# Evaluations, which test_detection.py checks, are rarer than the hosts'.
UNTRAINED = '_scope_', 'val_interval'


def twins(pattern):
    """Pairs of a leaf and the name of the host's config."""
    for leaf in sorted(LVIS.rglob('*.py')):
        if re.fullmatch(pattern, leaf.stem):
            yield leaf, re.sub(pattern, TWINS[pattern][0], leaf.stem)


def plain(value):
    if isinstance(value, (list, tuple)):
        return [plain(x) for x in value]
    if not isinstance(value, dict):
        return value
    # The constants are above.
    if value.get('type') in ('SeesawLoss', 'lt_losses_mm.SeesawSoftmaxLoss'):
        return 'Seesaw'
    return {
        key: plain(x)
        for key, x in value.items()
        if not (x is None or key in UNTRAINED or (key, x) in DEFAULTS)
    }


def training(config):
    return plain({key: config.get(key) for key in TRAINING.split()})


def differences(ours, theirs, path=''):
    """Dotted path -> what is ours there."""
    if isinstance(ours, list) and isinstance(theirs, list):
        if len(ours) == len(theirs) and isinstance(ours[0], dict):
            ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return {} if ours == theirs else {path[1:]: ours}
    found = {}
    for key in {**theirs, **ours}:
        pair = ours.get(key), theirs.get(key)
        found.update(differences(*pair, f'{path}.{key}'))
    return found


@pytest.mark.parametrize('pattern', TWINS)
def test_lvis_is_trained_as_the_host_does(pattern, parse):
    assert list(twins(pattern))
    for leaf, name in twins(pattern):
        theirs = of_host('mmdet', name, parse)
        benchmark = leaf.stem.split('_')[-1]
        if not name.endswith(benchmark):
            # The host's model and schedule on the host's LVIS.
            base = benchmark.replace('-', '_') + '_instance'
            lvis = of_host('mmdet', f'_base_/datasets/{base}', parse)
            train, data = theirs['train_dataloader'], lvis['train_dataloader']
            if name.startswith(('swin', 'dino')):  # with their own crops
                pipeline = train['dataset']['pipeline']
                data['dataset']['dataset']['pipeline'] = pipeline
            train['dataset'] = data['dataset']
            for key in ('type', 'data_root', 'ann_file', 'data_prefix'):
                value = lvis['val_dataloader']['dataset'][key]
                theirs['val_dataloader']['dataset'][key] = value
        # A recipe is compared with the loss of its twin.
        ours = parse(leaf, 'seesaw' if name.startswith('seesaw') else None)
        found = differences(training(ours), training(theirs))
        assert found == TWINS[pattern][1], name


def test_random_sampling_is_all_that_differs(parse):
    if find_spec('mmdet') is None:
        pytest.skip('mmdet is not installed')
    for leaf in LVIS.rglob('*_cross-entropy_random-*'):
        partner = leaf.name.replace('_random-', '_sample1e-3-')
        theirs = training(parse(leaf.with_name(partner)))
        loader = theirs['train_dataloader']
        loader['dataset'] = loader['dataset']['dataset']
        assert not differences(training(parse(leaf)), theirs), leaf


def test_every_family_of_lvis_has_a_twin():
    def family(leaf):
        parts = leaf.stem.replace('_random-', '_sample1e-3-').split('_')
        return (*parts[:2], *parts[-2:])

    compared = {family(leaf) for p in TWINS for leaf, _ in twins(p)}
    assert compared == {family(leaf) for leaf in LVIS.rglob('*.py')}


@pytest.mark.parametrize(
    'leaf', sorted(ADE.glob('*-cross-entropy_*.py')), ids=lambda x: x.stem
)
def test_ade20k_is_trained_as_the_host_does(leaf, parse):
    name = leaf.stem.replace('-cross-entropy', '')
    folder = re.match('[a-z]+(3plus)?', name)[0]
    theirs = of_host('mmseg', f'{folder}/{name}', parse)
    # mmseg's names say the batch, its configs do not.
    scaling = dict(auto_scale_lr=dict(enable=False, base_batch_size=16))
    found = differences(training(parse(leaf)), training(theirs))
    assert found == scaling
