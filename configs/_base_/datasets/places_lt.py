_base_ = './imagenet_lt.py'
data_preprocessor = dict(num_classes=365)
train_dataloader = dict(
    batch_size=32,
    dataset=dict(data_root='data/places_lt', ann_file='Places_LT_train.txt'),
)
val_dataloader = dict(
    dataset=dict(data_root='data/places_lt', ann_file='Places_LT_val.txt')
)
test_dataloader = dict(
    dataset=dict(data_root='data/places_lt', ann_file='Places_LT_test.txt')
)
