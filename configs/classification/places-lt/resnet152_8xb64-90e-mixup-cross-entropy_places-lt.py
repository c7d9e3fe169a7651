_base_ = [
    '../../_base_/models/resnet152_last-block.py',
    '../../_base_/datasets/places_lt.py',
    '../../_base_/schedules/sgd_cosine_90e.py',
    '../../_base_/default_runtime.py',
    '../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
]
model = dict(
    head=dict(num_classes=365, loss=_base_.pop('lt_loss')),
    train_cfg=dict(augments=dict(type='Mixup', alpha=0.2)),
)
train_dataloader = dict(batch_size=64)
