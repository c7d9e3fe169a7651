# Pre-trained on ImageNet; the last block and the classifier are trained.
_base_ = './resnet50.py'
model = dict(
    backbone=dict(
        depth=152,
        frozen_stages=3,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet152'),
    ),
)
