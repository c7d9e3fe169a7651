_base_ = [
    './mask-rcnn_r101_fpn_cross-entropy_random-ms-2x_lvis-v1.py',
    '../../../_base_/losses/seesaw.py',
]
model = dict(
    roi_head=dict(
        bbox_head=dict(
            cls_predictor_cfg=dict(type='NormedLinear'),
            loss_cls={{_base_.lt_loss}},
        )
    )
)
