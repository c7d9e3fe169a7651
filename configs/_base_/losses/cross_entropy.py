lt_loss = dict(
    _delete_=True,
    type='CrossEntropyLoss',
    use_sigmoid=False,
    loss_weight=1.0,
)
