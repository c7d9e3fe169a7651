_base_ = [
    '../../_base_/models/resnet32_cifar.py',
    '../../_base_/datasets/cifar10_lt.py',
    '../../_base_/schedules/cifar_lt_200e.py',
    '../../_base_/default_runtime.py',
    '../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
]
model = dict(head=dict(num_classes=10, loss=_base_.pop('lt_loss')))
train_dataloader = dict(dataset=dict(imbalance_factor=10))
