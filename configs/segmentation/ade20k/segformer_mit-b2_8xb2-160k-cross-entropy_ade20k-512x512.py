_base_ = [
    'mmseg::segformer/segformer_mit-b2_8xb2-160k_ade20k-512x512.py',
    '../../_base_/datasets/ade20k_parts.py',
    '../../_base_/plugin.py',
    '../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
]
model = dict(decode_head=dict(loss_decode=_base_.pop('lt_loss')))
val_evaluator = _base_.ade20k_metric
test_evaluator = dict(val_evaluator)
