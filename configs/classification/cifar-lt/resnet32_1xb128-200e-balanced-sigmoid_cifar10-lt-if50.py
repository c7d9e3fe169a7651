_base_ = [
    './resnet32_1xb128-200e-cross-entropy_cifar10-lt-if50.py',
    '../../_base_/losses/balanced_sigmoid.py',
]
model = dict(head=dict(loss={{_base_.lt_loss}}))
