_base_ = [
    './mask-rcnn_r50_fpn_cross-entropy_random-ms-1x_lvis-v1.py',
    '../../../_base_/losses/equalization_lvis_v1.py',
]
model = dict(roi_head=dict(bbox_head=dict(loss_cls={{_base_.lt_loss}})))
