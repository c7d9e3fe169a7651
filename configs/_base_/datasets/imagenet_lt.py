default_scope = 'mmpretrain'
data_preprocessor = dict(
    num_classes=1000,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='lt_losses_mm.ImageListDataset',
        data_root='data/imagenet_lt',
        ann_file='ImageNet_LT_train.txt',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=8,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='lt_losses_mm.ImageListDataset',
        data_root='data/imagenet_lt',
        ann_file='ImageNet_LT_val.txt',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = dict(
    batch_size=64,
    num_workers=8,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='lt_losses_mm.ImageListDataset',
        data_root='data/imagenet_lt',
        ann_file='ImageNet_LT_test.txt',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
val_evaluator = [
    dict(type='Accuracy', topk=(1, 5)),
    dict(type='lt_losses_mm.LongTailAccuracy'),
]
test_evaluator = val_evaluator
