# Kang et al., 2020, and feat_uniform.yaml of
# github.com/facebookresearch/classifier-balancing.
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.2, momentum=0.9, weight_decay=5e-4)
)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=90, by_epoch=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=90, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(base_batch_size=512, enable=False)
