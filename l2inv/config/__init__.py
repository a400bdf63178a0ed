"""The settings: read from one YAML file, checked in full."""
