"""Data: COCO files named in the config, checks, the mapper, and a synthetic data set."""
