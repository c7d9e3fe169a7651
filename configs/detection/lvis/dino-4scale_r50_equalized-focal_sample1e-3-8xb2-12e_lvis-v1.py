_base_ = [
    './dino-4scale_r50_focal_sample1e-3-8xb2-12e_lvis-v1.py',
    '../../_base_/losses/equalized_focal.py',
]
model = dict(bbox_head=dict(loss_cls={{_base_.lt_loss}}))
