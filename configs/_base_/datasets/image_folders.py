# Your own images: train/CLASS/*.jpg and val/CLASS/*.jpg in data_root. Labels
# are the sorted names of the folders, so both have to hold the same.
_base_ = './imagenet_lt.py'
train_dataloader = dict(
    dataset=dict(
        type='CustomDataset',
        data_root='data/own-images',
        ann_file='',
        data_prefix='train',
    )
)
val_dataloader = dict(
    dataset=dict(
        type='CustomDataset',
        data_root='data/own-images',
        ann_file='',
        data_prefix='val',
    )
)
test_dataloader = val_dataloader
