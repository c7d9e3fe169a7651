# Dense and DETR-type heads of mmdet read use_sigmoid to count their channels.
lt_loss = dict(
    _delete_=True,
    type='lt_losses_mm.EqualizedQualityFocalLoss',
    use_sigmoid=True,
    loss_weight=1.0,
)
