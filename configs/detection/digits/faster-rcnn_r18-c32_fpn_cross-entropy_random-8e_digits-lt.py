_base_ = [
    '../../_base_/models/faster-rcnn_r18-c32_fpn_digits.py',
    '../../_base_/datasets/digits_detection.py',
    '../../_base_/schedules/digits_detection.py',
    '../../_base_/default_runtime.py',
    '../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
]
model = dict(roi_head=dict(bbox_head=dict(loss_cls=_base_.pop('lt_loss'))))
