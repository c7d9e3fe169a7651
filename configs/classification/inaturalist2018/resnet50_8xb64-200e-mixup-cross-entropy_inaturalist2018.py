_base_ = [
    './resnet50_8xb64-200e-cross-entropy_inaturalist2018.py',
]
model = dict(train_cfg=dict(augments=dict(type='Mixup', alpha=0.2)))
# As datasets/ina2018.py of github.com/dvlab-research/MiSLAS.
train_pipeline = [
    *_base_.train_pipeline[:-1],
    dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4),
    _base_.train_pipeline[-1],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
