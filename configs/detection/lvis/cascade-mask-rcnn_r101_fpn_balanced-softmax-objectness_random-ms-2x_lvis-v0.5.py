_base_ = [
    './cascade-mask-rcnn_r101_fpn_cross-entropy_random-ms-2x_lvis-v0.5.py',
    '../../_base_/losses/balanced_softmax_objectness.py',
]
# MMEngine obeys this key in dicts, not in lists.
_base_.lt_loss.pop('_delete_')
model = dict(
    roi_head=dict(
        bbox_head=[
            dict(head, loss_cls=_base_.lt_loss)
            for head in _base_.model.roi_head.bbox_head
        ]
    )
)
