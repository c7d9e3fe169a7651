_base_ = './atss-improved_r50_fpn_focal_sample1e-3-ms-2x_lvis-v1.py'
model = dict(
    backbone=dict(
        depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')
    )
)
