# Places_LT/stage_1.py of github.com/zhmiao/OpenLongTailRecognition-OLTR: 0.1
# for the classifier, 0.001 for the backbone.
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.01))),
)
param_scheduler = [
    dict(type='MultiStepLR', milestones=[10, 20], gamma=0.1, by_epoch=True)
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=30, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(base_batch_size=128, enable=False)
