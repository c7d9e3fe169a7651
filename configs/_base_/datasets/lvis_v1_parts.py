# Variables in place of mmdet's keys, which configs that inherit a whole COCO
# config of mmdet have already.
lvis_train = dict(
    _delete_=True,
    type='ClassBalancedDataset',
    oversample_thr=1e-3,
    dataset=dict(
        type='LVISV1Dataset',
        data_root='data/lvis_v1/',
        ann_file='annotations/lvis_v1_train.json',
        data_prefix=dict(img=''),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(
                type='RandomChoiceResize',
                scales=[(1333, s) for s in range(640, 801, 32)],
                keep_ratio=True,
            ),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ],
    ),
)
lvis_val = dict(
    type='LVISV1Dataset',
    data_root='data/lvis_v1/',
    ann_file='annotations/lvis_v1_val.json',
    data_prefix=dict(img=''),
)
lvis_metric = dict(
    type='LVISMetric', ann_file='data/lvis_v1/annotations/lvis_v1_val.json'
)
lvis_test_cfg = dict(score_thr=1e-4, max_per_img=300)
