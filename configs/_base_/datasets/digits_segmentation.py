default_scope = 'mmseg'
data_root = 'data/digits'
num_classes = 40
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomCrop', crop_size=(96, 96)),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='lt_losses_mm.DigitsDataset',
        root=data_root,
        profile=dict(num_classes=num_classes),
        dataset=dict(
            type='BaseSegDataset',
            img_suffix='.png',
            reduce_zero_label=True,
            data_prefix=dict(
                img_path='images/train', seg_map_path='masks/train'
            ),
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
            type='BaseSegDataset',
            img_suffix='.png',
            reduce_zero_label=True,
            data_prefix=dict(
                img_path='images/test', seg_map_path='masks/test'
            ),
            pipeline=test_pipeline,
        ),
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='IoUMetric', iou_metrics=['mIoU']),
    dict(type='lt_losses_mm.FrequencyGroupIoU'),
]
test_evaluator = val_evaluator
