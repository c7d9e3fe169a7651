_base_ = [
    'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
    '../../_base_/datasets/ade20k_parts.py',
    '../../_base_/plugin.py',
]
val_evaluator = _base_.ade20k_metric
test_evaluator = dict(val_evaluator)
