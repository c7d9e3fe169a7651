_base_ = [
    '../../_base_/models/gfl_r18-c32_fpn_digits.py',
    '../../_base_/datasets/digits_detection.py',
    '../../_base_/schedules/digits_detection.py',
    '../../_base_/default_runtime.py',
    '../../_base_/losses/{{$LT_LOSS:quality_focal}}.py',
]
model = dict(bbox_head=dict(loss_cls=_base_.pop('lt_loss')))
train_dataloader = dict(batch_size=8)
auto_scale_lr = dict(base_batch_size=8)
