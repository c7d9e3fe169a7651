_base_ = [
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-160k_ade20k-512x512.py',
    '../../_base_/datasets/ade20k_parts.py',
    '../../_base_/plugin.py',
]
val_evaluator = _base_.ade20k_metric
test_evaluator = dict(val_evaluator)
