"""The event log: adding to it, verifying it, anchoring it, backing it up."""
