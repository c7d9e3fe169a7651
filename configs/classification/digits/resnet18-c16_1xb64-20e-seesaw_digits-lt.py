_base_ = [
    '../../_base_/models/resnet18-c16_digits.py',
    '../../_base_/datasets/digits_classification.py',
    '../../_base_/schedules/digits_classification.py',
    '../../_base_/default_runtime.py',
    '../../_base_/losses/seesaw.py',
]
model = dict(head=dict(loss={{_base_.lt_loss}}))
