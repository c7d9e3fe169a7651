_base_ = [
    './resnet18-c16_1xb64-20e-cross-entropy_digits-lt.py',
    '../../_base_/losses/sigmoid_equalization.py',
]
model = dict(head=dict(loss={{_base_.lt_loss}}))
