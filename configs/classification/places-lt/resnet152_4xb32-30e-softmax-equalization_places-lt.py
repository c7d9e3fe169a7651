_base_ = [
    './resnet152_4xb32-30e-cross-entropy_places-lt.py',
    '../../_base_/losses/softmax_equalization.py',
]
model = dict(head=dict(loss={{_base_.lt_loss}}))
