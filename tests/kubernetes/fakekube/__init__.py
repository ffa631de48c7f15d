"""A fake kube-apiserver, real enough for kubectl and for a pod informer."""

from .deployments import DeploymentController
from .failures import ApiError
from .pods import make_pod
from .server import Certificate, FakeApiServer

__all__ = [
    "ApiError",
    "Certificate",
    "DeploymentController",
    "FakeApiServer",
    "make_pod",
]
