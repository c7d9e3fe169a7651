# Which rows see the prior as published: not those of background. The prior
# itself: docs/methods/balanced_sigmoid.md.
_base_ = './balanced_sigmoid.py'
lt_loss = dict(background='foreground_rows')
