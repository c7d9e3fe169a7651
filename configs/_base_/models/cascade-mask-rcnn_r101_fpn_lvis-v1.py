_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'
model = dict(
    backbone=dict(
        depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')
    ),
    roi_head=dict(
        bbox_head=[
            dict(head, num_classes=1203)
            for head in _base_.model.roi_head.bbox_head
        ],
        mask_head=dict(num_classes=1203),
    ),
    test_cfg=dict(rcnn=dict(score_thr=1e-4, max_per_img=300)),
)
