_base_ = [
    './atss_r18-c32_fpn_focal_random-8e_digits-lt.py',
    '../../_base_/losses/equalized_focal.py',
]
model = dict(bbox_head=dict(loss_cls={{_base_.lt_loss}}))
