# The official validation split is what papers report on.
_base_ = './imagenet_lt.py'
data_preprocessor = dict(
    num_classes=8142,
    mean=[118.83, 120.105, 96.9],
    std=[49.725, 49.47, 48.96],
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    dataset=dict(
        data_root='data/inaturalist2018',
        ann_file='iNaturalist18_train.txt',
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root='data/inaturalist2018', ann_file='iNaturalist18_val.txt'
    )
)
test_dataloader = val_dataloader
