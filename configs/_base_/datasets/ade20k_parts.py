# A variable in place of mmseg's keys, which configs that inherit a whole
# config of mmseg have already.
ade20k_metric = dict(
    _delete_=True,
    type='lt_losses_mm.FrequencyGroupIoU',
    class_counts='ade20k',
    count_unit='pixel',
)
# 4 GPUs x 4 or 8 x 2: mmseg's names say it, its configs do not.
auto_scale_lr = dict(enable=False, base_batch_size=16)
