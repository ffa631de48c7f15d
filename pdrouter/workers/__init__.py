"""Several processes that serve as one router: their supervisor, and their common admin pages."""
