_base_ = [
    './vit-base-p16_16xb128-100e-cross-entropy_imagenet-lt.py',
    '../../_base_/losses/balanced_softmax.py',
]
model = dict(head=dict(loss={{_base_.lt_loss}}))
