_base_ = [
    '../../_base_/models/resnet50_pretrained.py',
    '../../_base_/datasets/image_folders.py',
    '../../_base_/schedules/sgd_cosine_90e.py',
    '../../_base_/default_runtime.py',
    '../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
]
data_root = 'data/own-images'
num_classes = 10
model = dict(head=dict(num_classes=num_classes, loss=_base_.pop('lt_loss')))
data_preprocessor = dict(num_classes=num_classes)
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
auto_scale_lr = dict(enable=True)
