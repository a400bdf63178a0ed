"""mark-working: what is offered to science, and exactly one holder for each OP."""
