"""What exists: pods, where they come from, and the work in flight on them."""
