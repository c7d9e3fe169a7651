_base_ = [
    './resnet32_1xb128-200e-cross-entropy_cifar10-lt-if10.py',
    '../../_base_/losses/equalized_focal.py',
]
model = dict(head=dict(loss={{_base_.lt_loss}}))
