_base_ = [
    './resnet32_1xb128-200e-mixup-cross-entropy_cifar10-lt-if100.py',
    '../../_base_/losses/balanced_softmax.py',
]
model = dict(head=dict(loss={{_base_.lt_loss}}))
