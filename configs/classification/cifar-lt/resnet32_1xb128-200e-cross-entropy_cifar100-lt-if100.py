_base_ = [
    '../../_base_/models/resnet32_cifar.py',
    '../../_base_/datasets/cifar100_lt.py',
    '../../_base_/schedules/cifar_lt_200e.py',
    '../../_base_/default_runtime.py',
    '../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
]
model = dict(head=dict(loss=_base_.pop('lt_loss')))
