_base_ = [
    '../../_base_/models/vit-base-p16_mae.py',
    '../../_base_/datasets/imagenet_lt_randaugment.py',
    '../../_base_/schedules/adamw_cosine_100e.py',
    '../../_base_/default_runtime.py',
    '../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
]
model = dict(head=dict(loss=_base_.pop('lt_loss')))
