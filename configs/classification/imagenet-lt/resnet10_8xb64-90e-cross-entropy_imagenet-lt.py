_base_ = [
    '../../_base_/models/resnet10.py',
    '../../_base_/datasets/imagenet_lt.py',
    '../../_base_/schedules/sgd_cosine_90e.py',
    '../../_base_/default_runtime.py',
    '../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
]
model = dict(head=dict(loss=_base_.pop('lt_loss')))
