_base_ = [
    './resnext50-32x4d_8xb64-90e-cross-entropy_imagenet-lt.py',
    '../../_base_/losses/seesaw.py',
]
model = dict(head=dict(loss={{_base_.lt_loss}}))
