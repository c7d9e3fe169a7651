_base_ = [
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',  # noqa: E501
    '../../_base_/datasets/ade20k_parts.py',
    '../../_base_/plugin.py',
    '../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
]
model = dict(
    decode_head=dict(loss_decode=_base_.lt_loss),
    auxiliary_head=dict(
        loss_decode=dict(
            _base_.pop('lt_loss'),
            loss_weight=_base_.model.auxiliary_head.loss_decode.loss_weight,
        )
    ),
)
val_evaluator = _base_.ade20k_metric
test_evaluator = dict(val_evaluator)
