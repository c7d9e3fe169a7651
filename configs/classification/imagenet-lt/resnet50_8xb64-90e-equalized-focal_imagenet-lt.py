_base_ = [
    './resnet50_8xb64-90e-cross-entropy_imagenet-lt.py',
    '../../_base_/losses/equalized_focal.py',
]
model = dict(head=dict(loss={{_base_.lt_loss}}))
