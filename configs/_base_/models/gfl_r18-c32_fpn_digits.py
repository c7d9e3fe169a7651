_base_ = './atss_r18-c32_fpn_digits.py'
model = dict(
    type='GFL',
    bbox_head=dict(
        _delete_=True,
        type='GFLHead',
        num_classes={{_base_.model.bbox_head.num_classes}},
        in_channels={{_base_.model.bbox_head.in_channels}},
        feat_channels={{_base_.model.bbox_head.feat_channels}},
        stacked_convs={{_base_.model.bbox_head.stacked_convs}},
        norm_cfg={{_base_.model.bbox_head.norm_cfg}},
        anchor_generator={{_base_.model.bbox_head.anchor_generator}},
        reg_max=8,
        loss_cls=dict(
            type='QualityFocalLoss',
            use_sigmoid=True,
            beta=2.0,
            loss_weight=1.0,
        ),
        loss_dfl=dict(type='DistributionFocalLoss', loss_weight=0.25),
        loss_bbox={{_base_.model.bbox_head.loss_bbox}},
    ),
)
