_base_ = './cascade-mask-rcnn_r101_fpn_lvis-v1.py'
model = dict(
    roi_head=dict(
        bbox_head=[
            dict(head, num_classes=1230)
            for head in _base_.model.roi_head.bbox_head
        ],
        mask_head=dict(num_classes=1230),
    )
)
