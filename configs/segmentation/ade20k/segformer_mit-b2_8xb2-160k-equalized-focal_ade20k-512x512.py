_base_ = [
    './segformer_mit-b2_8xb2-160k-cross-entropy_ade20k-512x512.py',
    '../../_base_/losses/equalized_focal.py',
]
model = dict(decode_head=dict(loss_decode={{_base_.lt_loss}}))
