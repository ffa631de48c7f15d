"""The algorithms that choose one pod by themselves, a module for each family."""
