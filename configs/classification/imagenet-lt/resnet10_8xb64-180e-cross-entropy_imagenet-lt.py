_base_ = [
    '../../_base_/models/resnet10.py',
    '../../_base_/datasets/imagenet_lt.py',
    '../../_base_/schedules/sgd_cosine_180e.py',
    '../../_base_/default_runtime.py',
]
