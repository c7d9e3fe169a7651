_base_ = [
    './fcn_r50-d8_4xb4-160k-cross-entropy_ade20k-512x512.py',
    '../../_base_/losses/seesaw.py',
]
model = dict(
    decode_head=dict(loss_decode=_base_.lt_loss),
    auxiliary_head=dict(
        loss_decode=dict(
            _base_.lt_loss,
            loss_weight=_base_.model.auxiliary_head.loss_decode.loss_weight,
        )
    ),
)
