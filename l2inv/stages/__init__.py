"""The pipeline, one module or package a stage: scan -> qualify -> preprocess -> mark_working -> mark_inverted -> publish."""
