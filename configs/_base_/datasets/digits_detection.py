default_scope = 'mmdet'
data_root = 'data/digits'
num_classes = 40
backend_args = None
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(
        type='PackDetInputs',
        meta_keys=(
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
        ),
    ),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='lt_losses_mm.DigitsDataset',
        root=data_root,
        profile=dict(num_classes=num_classes),
        dataset=dict(
            type='LVISV1Dataset',
            ann_file='lvis/train.json',
            data_prefix=dict(img=''),
            filter_cfg=dict(filter_empty_gt=True),
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='lt_losses_mm.DigitsDataset',
        root=data_root,
        profile=dict(num_classes=num_classes),
        dataset=dict(
            type='LVISV1Dataset',
            ann_file='lvis/test.json',
            data_prefix=dict(img=''),
            test_mode=True,
            pipeline=test_pipeline,
        ),
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='LVISMetric', ann_file=data_root + '/lvis/test.json', metric='bbox'
)
test_evaluator = val_evaluator
