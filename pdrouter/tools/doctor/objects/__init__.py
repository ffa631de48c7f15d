"""Kubernetes objects, as far as the doctor looks at them."""
