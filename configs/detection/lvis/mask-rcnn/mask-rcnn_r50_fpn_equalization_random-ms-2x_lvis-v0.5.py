_base_ = [
    './mask-rcnn_r50_fpn_cross-entropy_random-ms-2x_lvis-v0.5.py',
    '../../../_base_/losses/equalization_lvis_v0.5.py',
]
model = dict(roi_head=dict(bbox_head=dict(loss_cls={{_base_.lt_loss}})))
