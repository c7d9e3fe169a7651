_base_ = [
    './mask-rcnn_swin-t-p4-w7_fpn_cross-entropy_sample1e-3-ms-crop-3x_lvis-v1.py',  # noqa: E501
    '../../_base_/losses/seesaw.py',
]
model = dict(
    roi_head=dict(
        bbox_head=dict(
            cls_predictor_cfg=dict(type='NormedLinear'),
            loss_cls={{_base_.lt_loss}},
        )
    )
)
