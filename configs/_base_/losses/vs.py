lt_loss = dict(_delete_=True, type='lt_losses_mm.VSLoss', loss_weight=1.0)
