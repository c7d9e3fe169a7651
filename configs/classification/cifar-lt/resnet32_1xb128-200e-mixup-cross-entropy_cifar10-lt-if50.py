_base_ = [
    './resnet32_1xb128-200e-cross-entropy_cifar10-lt-if50.py',
]
model = dict(train_cfg=dict(augments=dict(type='Mixup', alpha=1.0)))
