"""xLLM, of which no wire is known: one pod serves a request."""
