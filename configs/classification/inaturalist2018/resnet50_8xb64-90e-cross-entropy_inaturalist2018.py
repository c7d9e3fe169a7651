_base_ = [
    '../../_base_/models/resnet50.py',
    '../../_base_/datasets/inaturalist2018.py',
    '../../_base_/schedules/inaturalist2018_90e.py',
    '../../_base_/default_runtime.py',
    '../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
]
model = dict(head=dict(num_classes=8142, loss=_base_.pop('lt_loss')))
