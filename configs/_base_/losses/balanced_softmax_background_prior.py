# Of the RoIs that mmdet samples, at most a quarter hold an object.
_base_ = './balanced_softmax.py'
lt_loss = dict(background=0.75)
