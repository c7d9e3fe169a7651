default_scope = 'mmpretrain'
data_root = 'data/digits'
num_classes = 40
data_preprocessor = dict(
    num_classes=num_classes,
    mean=[128.0, 128.0, 128.0],
    std=[64.0, 64.0, 64.0],
    to_rgb=True,
)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(48, 32)),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='lt_losses_mm.DigitsDataset',
        root=data_root,
        profile=dict(num_classes=num_classes),
        dataset=dict(
            type='CustomDataset',
            ann_file='crops/train.txt',
            data_prefix='crops',
            pipeline=pipeline,
        ),
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='lt_losses_mm.DigitsDataset',
        root=data_root,
        profile=dict(num_classes=num_classes),
        dataset=dict(
            type='CustomDataset',
            ann_file='crops/test.txt',
            data_prefix='crops',
            pipeline=pipeline,
        ),
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='Accuracy', topk=(1,)),
    dict(type='lt_losses_mm.LongTailAccuracy'),
]
test_evaluator = val_evaluator
