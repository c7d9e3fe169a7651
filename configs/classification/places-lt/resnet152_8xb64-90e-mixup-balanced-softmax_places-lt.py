_base_ = [
    './resnet152_8xb64-90e-mixup-cross-entropy_places-lt.py',
    '../../_base_/losses/balanced_softmax.py',
]
model = dict(head=dict(loss={{_base_.lt_loss}}))
