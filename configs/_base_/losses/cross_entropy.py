lt_loss = dict(_delete_=True, type='CrossEntropyLoss', loss_weight=1.0)
