"""Studies: one file each, one row each in ``registry.STUDIES``; `diffusemble study NAME` runs one."""
