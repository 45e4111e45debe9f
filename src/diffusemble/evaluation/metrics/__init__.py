"""What pictures are scored by: one file per metric, one row each in ``registry.METRICS``."""
