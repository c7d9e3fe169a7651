lt_loss = dict(_delete_=True, type='lt_losses_mm.BalancedSigmoidLoss', loss_weight=1.0)
