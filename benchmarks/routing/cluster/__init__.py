"""A discrete-event model of a cluster, which drives the router's own choice of pods."""
