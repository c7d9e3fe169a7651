# The published share of the annotated images, of the data as they are.
_base_ = './equalization.py'
lt_loss = dict(class_counts='lvis_v0.5', threshold=1.77e-3, num_images=56740)
