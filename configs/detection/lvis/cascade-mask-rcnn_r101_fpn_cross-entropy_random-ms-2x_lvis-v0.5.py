_base_ = [
    '../../_base_/models/cascade-mask-rcnn_r101_fpn_lvis-v0.5.py',
    '../../_base_/datasets/lvis_v0.5_instance_random.py',
    'mmdet::_base_/schedules/schedule_2x.py',
    'mmdet::_base_/default_runtime.py',
    '../../_base_/plugin.py',
]
train_cfg = dict(val_interval=24)
