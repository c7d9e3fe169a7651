_base_ = [
    './resnet32_1xb128-200e-cross-entropy_cifar100-lt-if50.py',
    '../../_base_/losses/sigmoid_equalization.py',
]
model = dict(head=dict(loss={{_base_.lt_loss}}))
