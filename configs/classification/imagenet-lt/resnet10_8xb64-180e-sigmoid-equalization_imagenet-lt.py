_base_ = [
    './resnet10_8xb64-180e-cross-entropy_imagenet-lt.py',
    '../../_base_/losses/sigmoid_equalization.py',
]
model = dict(head=dict(loss={{_base_.lt_loss}}))
