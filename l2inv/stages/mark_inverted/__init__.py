"""mark-inverted: science's ready event, typed or dropped into the inbox."""
