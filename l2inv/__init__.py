"""Takes DKIST Level 1 datasets from the metadata store to published Level 2 inversions."""

__version__ = "0.1.0"
