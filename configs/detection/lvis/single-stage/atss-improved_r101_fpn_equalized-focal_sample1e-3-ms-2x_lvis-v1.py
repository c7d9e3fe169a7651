_base_ = [
    './atss-improved_r101_fpn_focal_sample1e-3-ms-2x_lvis-v1.py',
    '../../../_base_/losses/equalized_focal.py',
]
model = dict(bbox_head=dict(loss_cls={{_base_.lt_loss}}))
