_base_ = [
    './resnet50_8xb64-200e-cross-entropy_inaturalist2018.py',
    '../../_base_/losses/equalized_focal.py',
]
model = dict(head=dict(loss={{_base_.lt_loss}}))
