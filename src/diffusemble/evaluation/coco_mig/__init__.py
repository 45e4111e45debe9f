"""COCO-MIG: coloured things in boxes, found by published detectors (MIGC, arXiv 2402.05408)."""
