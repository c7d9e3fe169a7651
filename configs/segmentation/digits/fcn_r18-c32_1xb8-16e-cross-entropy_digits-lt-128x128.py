_base_ = [
    '../../_base_/models/fcn_r18-c32_digits.py',
    '../../_base_/datasets/digits_segmentation.py',
    '../../_base_/schedules/digits_segmentation.py',
    '../../_base_/default_runtime.py',
    '../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
]
model = dict(decode_head=dict(loss_decode=_base_.pop('lt_loss')))
