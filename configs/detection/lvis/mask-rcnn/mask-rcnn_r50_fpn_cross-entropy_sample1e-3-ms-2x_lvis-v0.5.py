_base_ = [
    '../../../_base_/models/mask-rcnn_r50_fpn_lvis-v0.5.py',
    'mmdet::_base_/datasets/lvis_v0.5_instance.py',
    'mmdet::_base_/schedules/schedule_2x.py',
    'mmdet::_base_/default_runtime.py',
    '../../../_base_/plugin.py',
    '../../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
]
train_cfg = dict(val_interval=24)
model = dict(roi_head=dict(bbox_head=dict(loss_cls=_base_.pop('lt_loss'))))
