_base_ = [
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py',
    '../../../_base_/datasets/lvis_v1_parts.py',
    '../../../_base_/plugin.py',
    '../../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
]
model = dict(
    roi_head=dict(
        bbox_head=dict(num_classes=1203, loss_cls=_base_.pop('lt_loss')),
        mask_head=dict(num_classes=1203),
    ),
    test_cfg=dict(rcnn={{_base_.lvis_test_cfg}}),
)
_base_.lvis_train.dataset.pipeline = _base_.train_pipeline
train_dataloader = dict(dataset=_base_.lvis_train)
val_dataloader = dict(dataset={{_base_.lvis_val}})
test_dataloader = val_dataloader
val_evaluator = {{_base_.lvis_metric}}
test_evaluator = val_evaluator
train_cfg = dict(val_interval=36)
