_base_ = [
    '../../../_base_/models/mask-rcnn_r50_fpn_lvis-v1.py',
    '../../../_base_/datasets/lvis_v1_instance_random.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../../../_base_/plugin.py',
    '../../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
]
train_cfg = dict(val_interval=12)
model = dict(roi_head=dict(bbox_head=dict(loss_cls=_base_.pop('lt_loss'))))
