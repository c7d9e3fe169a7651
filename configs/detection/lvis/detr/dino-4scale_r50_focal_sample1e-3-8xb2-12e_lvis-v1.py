_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../../../_base_/datasets/lvis_v1_parts.py',
    '../../../_base_/plugin.py',
    '../../../_base_/losses/{{$LT_LOSS:focal}}.py',
]
model = dict(bbox_head=dict(num_classes=1203, loss_cls=_base_.pop('lt_loss')))
_base_.lvis_train.dataset.pipeline = _base_.train_pipeline
train_dataloader = dict(dataset=_base_.lvis_train)
val_dataloader = dict(dataset={{_base_.lvis_val}})
test_dataloader = val_dataloader
val_evaluator = {{_base_.lvis_metric}}
test_evaluator = val_evaluator
train_cfg = dict(val_interval=12)
