"""Compares ways to choose pods, on real traces and a simulated cluster."""
