_base_ = [
    './mask-rcnn_r101_fpn_cross-entropy_random-ms-1x_lvis-v1.py',
    '../../_base_/losses/balanced_sigmoid.py',
]
model = dict(roi_head=dict(bbox_head=dict(loss_cls={{_base_.lt_loss}})))
