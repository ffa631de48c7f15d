"""What each leg gets of a client's request: the same, unless something is encoded beforehand."""

from pdrouter.cluster.pods import Pod
from pdrouter.openai.request import InferenceRequest
from pdrouter.serving.leg_outcome import Attempt


class LegRequests:
    """A request as its legs get it.

    Attributes:
        client: as the client wrote it, for a pod that does everything.
        prompt: for the pod that computes the prompt.
        last: for a pod that only decodes.
        deadline: when all side legs must be over, on the monotonic clock.
    """

    __slots__ = ("client", "deadline", "last", "prompt")

    def __init__(self, request: InferenceRequest, deadline: float) -> None:
        """Let all legs get the same."""
        self.client = self.prompt = self.last = request
        self.deadline = deadline

    async def renew(self, attempt: Attempt, taker: Pod) -> None:
        """Make ready for another try of the leg that computes the prompt.

        Args:
            attempt: the try before.
            taker: the pod that it is tried on next.
        """
        del attempt, taker
