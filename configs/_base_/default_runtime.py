# Counts for the metrics and LVIS evaluation on NumPy 2 need the package also
# where the loss is the host's own and the host's own tools train.
custom_imports = dict(imports=['lt_losses_mm'], allow_failed_imports=False)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
)
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0)
