"""aibrix's score policies."""
