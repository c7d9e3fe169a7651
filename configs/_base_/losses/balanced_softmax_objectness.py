_base_ = './balanced_softmax.py'
lt_loss = dict(background='objectness')
