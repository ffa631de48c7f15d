"""Who asks, and what they may: users, their keys, and what of theirs is counted."""
