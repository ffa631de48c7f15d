"""What a simulated cluster is made of."""

from dataclasses import dataclass

from benchmarks.routing.cluster.speeds import DecodeSpeed, Link, PrefillSpeed
from benchmarks.routing.cluster.workload import Workload


@dataclass(frozen=True, slots=True)
class Hardware:
    """The engines of a cluster and the link between them.

    Attributes:
        name: name, for people.
        prefill: speed of a prefill pod.
        prefill_kv_tokens: its KV memory.
        decode: speed of a decode pod.
        decode_kv_tokens: its KV memory.
        local_prefill: speed at which a decode pod computes prompts.
        link: how KV blocks get from one to the other.
    """

    name: str
    prefill: PrefillSpeed
    prefill_kv_tokens: int
    decode: DecodeSpeed
    decode_kv_tokens: int
    local_prefill: PrefillSpeed
    link: Link


@dataclass(frozen=True, slots=True)
class Shape:
    """How many pods a cluster has, and how the slow ones among them compare.

    Attributes:
        name: name, for people.
        prefill: for each prefill pod, how many times longer than the hardware's speed it takes.
        decode: the same for each decode pod.
        replicas: replicas of the router.
        workers: processes of each replica, which know the same.
    """

    name: str
    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    replicas: int = 1
    workers: int = 1


def prefill_capacity(hardware: Hardware, shape: Shape, workload: Workload) -> float:
    """Return the requests per second that the prefill pods could serve if nothing were cached."""
    speed = hardware.prefill
    seconds = sum(speed.run(0, request.prompt_tokens) for request in workload.requests)
    pods = sum(1.0 / slowness for slowness in shape.prefill)
    return pods * len(workload.requests) / seconds


def check_memory(hardware: Hardware, workload: Workload) -> None:
    """Check that every request fits into the memory of a pod that has nothing else.

    Raises:
        ValueError: one does not.
    """
    for request in workload.requests:
        need = request.prompt_tokens + request.output_tokens
        if request.prompt_tokens > hardware.prefill_kv_tokens or need > hardware.decode_kv_tokens:
            raise ValueError(
                f"a prompt of {request.prompt_tokens} tokens with an answer of "
                f"{request.output_tokens} does not fit into the memory of a {hardware.name} pod"
            )
