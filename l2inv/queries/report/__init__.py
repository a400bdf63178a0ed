"""The status report: read in one snapshot, drawn, written as one HTML page."""
