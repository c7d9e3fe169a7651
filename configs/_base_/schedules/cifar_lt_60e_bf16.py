# The 200 epochs in small, for a CPU: steps scaled by 0.3, warm-up as it was.
_base_ = './cifar_lt_200e.py'
optim_wrapper = dict(type='lt_losses_mm.Bfloat16OptimWrapper')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.2, by_epoch=True, begin=0, end=5),
    dict(type='MultiStepLR', milestones=[48, 54], gamma=0.01),
]
train_cfg = dict(max_epochs=60)
