_base_ = [
    './resnet152_4xb32-30e-cross-entropy_places-lt.py',
    '../../_base_/losses/balanced_sigmoid.py',
]
model = dict(head=dict(loss={{_base_.lt_loss}}))
