_base_ = [
    './cascade-mask-rcnn_r101_fpn_cross-entropy_random-ms-2x_lvis-v1.py',
    '../../../_base_/losses/seesaw.py',
]
# MMEngine obeys this key in dicts, not in lists.
_base_.lt_loss.pop('_delete_')
model = dict(
    roi_head=dict(
        bbox_head=[
            dict(
                head,
                cls_predictor_cfg=dict(type='NormedLinear'),
                loss_cls=_base_.lt_loss,
            )
            for head in _base_.model.roi_head.bbox_head
        ]
    )
)
