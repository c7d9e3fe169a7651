_base_ = [
    './mask-rcnn_r50_fpn_cross-entropy-normed_sample1e-3-ms-2x_lvis-v1.py',
    '../../../_base_/losses/seesaw.py',
]
model = dict(roi_head=dict(bbox_head=dict(loss_cls={{_base_.lt_loss}})))
