_base_ = [
    './resnet50_8xb64-200e-cross-entropy_inaturalist2018.py',
]
model = dict(train_cfg=dict(augments=dict(type='Mixup', alpha=0.2)))
