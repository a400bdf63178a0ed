"""The report on one web page: read in one snapshot, drawn, written as HTML."""
