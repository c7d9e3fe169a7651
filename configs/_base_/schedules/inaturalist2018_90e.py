_base_ = './sgd_cosine_90e.py'
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
