_base_ = [
    './fcn_r18-c32_1xb8-16e-cross-entropy_digits-lt-128x128.py',
    '../../_base_/losses/balanced_softmax.py',
]
model = dict(decode_head=dict(loss_decode={{_base_.lt_loss}}))
