_base_ = './mask-rcnn_r50_fpn_lvis-v1.py'
model = dict(
    roi_head=dict(
        bbox_head=dict(num_classes=1230), mask_head=dict(num_classes=1230)
    )
)
