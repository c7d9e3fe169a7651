_base_ = [
    './resnet50_8xb64-180e-cross-entropy_imagenet-lt.py',
]
model = dict(train_cfg=dict(augments=dict(type='Mixup', alpha=0.2)))
