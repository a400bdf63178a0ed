"""scan: read the metadata store, keep each version of a dataset, group datasets into observing programs."""
