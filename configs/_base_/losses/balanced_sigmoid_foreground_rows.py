# The published form for detection: rows of background see no prior.
_base_ = './balanced_sigmoid.py'
lt_loss = dict(background='foreground_rows')
