_base_ = [
    './resnet32_1xb128-60e-bf16-cross-entropy_cifar100-lt-if100.py',
    '../../_base_/losses/balanced_sigmoid.py',
]
model = dict(head=dict(loss={{_base_.lt_loss}}))
