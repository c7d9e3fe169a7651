# MMPretrain's ResNet begins at depth 18.
_base_ = './resnet50.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='lt_losses_mm.BasicBlockResNet',
        stage_blocks=(1, 1, 1, 1),
    ),
    head=dict(in_channels=512),
)
