_base_ = 'mmseg::_base_/datasets/pascal_voc12.py'
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='BaseSegDataset',
        data_prefix=dict(img_path='images/train', seg_map_path='masks/train'),
        pipeline=_base_.train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='BaseSegDataset',
        data_prefix=dict(img_path='images/val', seg_map_path='masks/val'),
        pipeline=_base_.test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='lt_losses_mm.FrequencyGroupIoU')
test_evaluator = dict(val_evaluator)
auto_scale_lr = dict(enable=False, base_batch_size=16)
