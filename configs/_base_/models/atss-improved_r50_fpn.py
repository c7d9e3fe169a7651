# The "improved baseline" of the EFL paper with the parts that mmdet has; see
# configs/detection/lvis/README.md for what differs.
_base_ = 'mmdet::atss/atss_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(norm_cfg=dict(requires_grad=False)),
    bbox_head=dict(
        anchor_generator=dict(
            _delete_=True,
            type='AnchorGenerator',
            scales=[6, 8],
            ratios=[1.0],
            strides=[8, 16, 32, 64, 128],
        ),
        init_cfg=dict(
            type='Normal',
            layer='Conv2d',
            std=0.01,
            override=dict(
                type='Normal', name='atss_cls', std=0.01, bias_prob=0.001
            ),
        ),
        loss_bbox=dict(loss_weight=1.0),
    ),
    train_cfg=dict(assigner=dict(topk=18)),
    test_cfg=dict(nms_pre=6000, nms=dict(iou_threshold=0.5)),
)
optim_wrapper = dict(
    optimizer=dict(lr=0.02), clip_grad=dict(max_norm=35, norm_type=2)
)
