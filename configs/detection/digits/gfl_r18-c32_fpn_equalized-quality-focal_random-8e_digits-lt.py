_base_ = [
    './gfl_r18-c32_fpn_quality-focal_random-8e_digits-lt.py',
    '../../_base_/losses/equalized_quality_focal.py',
]
model = dict(bbox_head=dict(loss_cls={{_base_.lt_loss}}))
