_base_ = './inaturalist2018_90e.py'
param_scheduler = [dict(type='CosineAnnealingLR', T_max=200, by_epoch=True)]
train_cfg = dict(max_epochs=200)
