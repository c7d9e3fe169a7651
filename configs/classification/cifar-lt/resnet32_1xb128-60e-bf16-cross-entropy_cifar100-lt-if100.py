_base_ = [
    '../../_base_/models/resnet32_cifar.py',
    '../../_base_/datasets/cifar100_lt.py',
    '../../_base_/schedules/cifar_lt_60e_bf16.py',
    '../../_base_/default_runtime.py',
    '../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
]
model = dict(
    backbone=dict(channels_last=True), head=dict(loss=_base_.pop('lt_loss'))
)
