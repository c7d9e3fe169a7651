_base_ = [
    '../../_base_/models/resnet152_last-block.py',
    '../../_base_/datasets/places_lt.py',
    '../../_base_/schedules/sgd_cosine_90e.py',
    '../../_base_/default_runtime.py',
]
model = dict(
    head=dict(num_classes=365),
    train_cfg=dict(augments=dict(type='Mixup', alpha=0.2)),
)
train_dataloader = dict(batch_size=64)
