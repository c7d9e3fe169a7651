_base_ = [
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    '../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
    '../../_base_/plugin.py',
]
classes = ('first', 'second', 'third')  # the names in the JSON files
data = dict(data_root='data/own-coco/', metainfo=dict(classes=classes))
train = dict(ann_file='annotations/train.json', data_prefix=dict(img='train/'))
val = dict(ann_file='annotations/val.json', data_prefix=dict(img='val/'))
model = dict(
    roi_head=dict(
        bbox_head=dict(
            num_classes=len(classes), loss_cls=_base_.pop('lt_loss')
        ),
        mask_head=dict(num_classes=len(classes)),
    )
)
train_dataloader = dict(dataset=dict(data, **train))
val_dataloader = dict(dataset=dict(data, **val))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data['data_root'] + val['ann_file'])
test_evaluator = val_evaluator
