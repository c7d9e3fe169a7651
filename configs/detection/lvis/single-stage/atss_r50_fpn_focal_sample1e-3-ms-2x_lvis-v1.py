_base_ = [
    'mmdet::atss/atss_r50_fpn_1x_coco.py',
    '../../../_base_/datasets/lvis_v1_parts.py',
    '../../../_base_/schedules/lvis_2x_parts.py',
    '../../../_base_/plugin.py',
    '../../../_base_/losses/{{$LT_LOSS:focal}}.py',
]
model = dict(
    bbox_head=dict(num_classes=1203, loss_cls=_base_.pop('lt_loss')),
    test_cfg={{_base_.lvis_test_cfg}},
)
train_dataloader = dict(dataset={{_base_.lvis_train}})
val_dataloader = dict(dataset={{_base_.lvis_val}})
test_dataloader = val_dataloader
val_evaluator = {{_base_.lvis_metric}}
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=24, val_interval=24)
param_scheduler = {{_base_.lvis_2x}}
