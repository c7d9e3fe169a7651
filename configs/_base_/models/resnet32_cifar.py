# ResNet-32 of He et al., 2016, section 4.2. MMPretrain's ResNet_CIFAR has the
# depths of ImageNet, with four stages and 24 times as many parameters.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='lt_losses_mm.BasicBlockResNet',
        stage_blocks=(5, 5, 5),
        base_channels=16,
        small_images=True,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=64,
        init_cfg=dict(type='Kaiming', layer='Linear', mode='fan_in'),
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
