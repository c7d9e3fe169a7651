_base_ = [
    '../../_base_/models/resnet152_last-block.py',
    '../../_base_/datasets/places_lt.py',
    '../../_base_/schedules/places_lt_30e.py',
    '../../_base_/default_runtime.py',
]
model = dict(head=dict(num_classes=365))
