_base_ = [
    '../../_base_/models/resnet18-c16_digits.py',
    '../../_base_/datasets/digits_classification.py',
    '../../_base_/schedules/digits_classification.py',
    '../../_base_/default_runtime.py',
    '../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
]
model = dict(head=dict(loss=_base_.pop('lt_loss')))
