# A classifier of unit features and unit weights, times 30: ArcFace's head
# without its margin.
_base_ = './resnet50.py'
model = dict(
    head=dict(type='ArcFaceClsHead', scale=30.0, margins=0.0),
)
