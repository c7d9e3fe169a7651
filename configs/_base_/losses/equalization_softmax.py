# For heads without rows of background: the sigmoid form would leave rare
# classes without any negative there.
lt_loss = dict(
    _delete_=True,
    type='lt_losses_mm.EqualizationSoftmaxLoss',
    loss_weight=1.0,
)
