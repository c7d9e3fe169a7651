_base_ = [
    './faster-rcnn_r18-c32_fpn_cross-entropy_random-8e_digits-lt.py',
    '../../_base_/losses/softmax_equalization.py',
]
model = dict(roi_head=dict(bbox_head=dict(loss_cls={{_base_.lt_loss}})))
