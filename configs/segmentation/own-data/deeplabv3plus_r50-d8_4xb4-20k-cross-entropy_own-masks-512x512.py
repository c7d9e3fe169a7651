_base_ = [
    'mmseg::_base_/models/deeplabv3plus_r50-d8.py',
    'mmseg::_base_/schedules/schedule_20k.py',
    'mmseg::_base_/default_runtime.py',
    '../../_base_/datasets/own_masks.py',
    '../../_base_/losses/{{$LT_LOSS:cross_entropy}}.py',
    '../../_base_/plugin.py',
]
classes = ('first', 'second', 'third')  # mask values 0, 1, 2; 255 is ignored
data = dict(data_root='data/own-masks', metainfo=dict(classes=classes))
loss = _base_.pop('lt_loss')
aux_loss = dict(loss, loss_weight=0.4)
head = dict(num_classes=len(classes), loss_decode=loss)
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=head,
    auxiliary_head=dict(head, loss_decode=aux_loss),
)
train_dataloader = dict(dataset=data)
val_dataloader = dict(dataset=data)
test_dataloader = val_dataloader
