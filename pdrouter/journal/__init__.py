"""One knowledge for several workers: each notes what it changes, and the others do the same."""
