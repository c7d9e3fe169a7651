_base_ = './cifar100_lt.py'
data_preprocessor = dict(num_classes=10)
train_dataloader = dict(dataset=dict(type='lt_losses_mm.CIFAR10LT'))
val_dataloader = dict(dataset=dict(type='lt_losses_mm.CIFAR10LT'))
test_dataloader = val_dataloader
