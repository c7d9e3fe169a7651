_base_ = [
    './swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k-cross-entropy_ade20k-512x512.py',  # noqa: E501
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
