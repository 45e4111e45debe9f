"""What the denoisers of each family are given: their text, sizes, guidance and packing, as their pipelines do it."""
