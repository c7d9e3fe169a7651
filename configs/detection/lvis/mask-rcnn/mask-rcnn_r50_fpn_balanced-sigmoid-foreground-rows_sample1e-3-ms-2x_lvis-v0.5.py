_base_ = [
    './mask-rcnn_r50_fpn_cross-entropy_sample1e-3-ms-2x_lvis-v0.5.py',
    '../../../_base_/losses/balanced_sigmoid_foreground_rows.py',
]
model = dict(roi_head=dict(bbox_head=dict(loss_cls={{_base_.lt_loss}})))
