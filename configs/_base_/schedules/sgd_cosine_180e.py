_base_ = './sgd_cosine_90e.py'
param_scheduler = [dict(type='CosineAnnealingLR', T_max=180, by_epoch=True)]
train_cfg = dict(max_epochs=180)
