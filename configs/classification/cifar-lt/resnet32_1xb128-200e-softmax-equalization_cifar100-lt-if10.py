_base_ = [
    './resnet32_1xb128-200e-cross-entropy_cifar100-lt-if10.py',
    '../../_base_/losses/softmax_equalization.py',
]
model = dict(head=dict(loss={{_base_.lt_loss}}))
