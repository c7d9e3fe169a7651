# Fine-tuning of a masked autoencoder that was trained on the long-tailed
# images themselves, as LiVT (Xu et al., 2023) does.
_base_ = 'mmpretrain::_base_/models/vit-base-p16.py'
model = dict(
    backbone=dict(
        drop_rate=0.0,
        drop_path_rate=0.1,
        out_type='avg_featmap',
        final_norm=False,
        init_cfg=dict(
            _delete_=True,
            type='Pretrained',
            checkpoint='checkpoints/mae_vit-base-p16_imagenet-lt.pth',
            prefix='backbone.',
        ),
    ),
    head=dict(
        _delete_=True,
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=2e-5),
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
    train_cfg=dict(
        augments=[
            dict(type='Mixup', alpha=0.8),
            dict(type='CutMix', alpha=1.0),
        ]
    ),
)
