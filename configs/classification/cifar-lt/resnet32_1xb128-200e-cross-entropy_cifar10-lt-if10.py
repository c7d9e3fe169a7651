_base_ = [
    '../../_base_/models/resnet32_cifar.py',
    '../../_base_/datasets/cifar10_lt.py',
    '../../_base_/schedules/cifar_lt_200e.py',
    '../../_base_/default_runtime.py',
]
model = dict(head=dict(num_classes=10))
train_dataloader = dict(dataset=dict(imbalance_factor=10))
