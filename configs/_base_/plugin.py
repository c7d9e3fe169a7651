# LVIS evaluation on NumPy 2, and counts for metrics, need the package also
# where the loss is the host's own and the host's own tools train.
custom_imports = dict(imports=['lt_losses_mm'], allow_failed_imports=False)
