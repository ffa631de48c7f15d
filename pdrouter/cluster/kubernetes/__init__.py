"""The pods as the Kubernetes API gives them."""
