"""What people ask for: reads only."""
