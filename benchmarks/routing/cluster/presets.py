"""Hardware and cluster shapes that benchmarks use, with the source of each number.

No number here was measured by us. Peaks are from the makers' specifications; the efficiency factors
are assumptions, and stand where they are used. Operators put in what their own engines show.
"""

from benchmarks.routing.cluster.model import Hardware, Shape
from benchmarks.routing.cluster.speeds import DecodeSpeed, Link, PrefillSpeed

# Llama 3 70B in bf16, from its published configuration: 80 layers, 8192 wide, 8 KV heads of 128.
_70B_PARAMETERS = 70e9
_70B_KV_BYTES = 2 * 80 * 8 * 128 * 2
_70B_ATTENTION_FLOPS = 2 * 80 * 8192
"""Per pair of a token and one before it: half of 4 * layers * width, as the mask is causal."""

# Llama 3 8B in bf16, from its published configuration: 32 layers, 4096 wide, 8 KV heads of 128.
_8B_PARAMETERS = 8e9
_8B_KV_BYTES = 2 * 32 * 8 * 128 * 2
_8B_ATTENTION_FLOPS = 2 * 32 * 4096

_BYTES = 2
"""Bytes of a parameter in bf16."""
_FLOPS_PER_PARAMETER = 2
"""Per token: one multiplication and one addition."""
_MEMORY_SHARE = 0.9
"""Share of device memory for weights and KV blocks: vLLM's --gpu-memory-utilization."""
_MEMORY_EFFICIENCY = 0.6
"""Assumed share of the peak memory bandwidth that decode reaches."""

# A pod of four H100 SXM: 989 TFLOPS dense bf16, 80 GB, 3.35 TB/s each (NVIDIA data sheet).
_H100S = 4
_H100_FLOPS = _H100S * 989e12 * 0.5  # half of the peak: assumed, usual for long prompts
_H100_BYTES_PER_S = _H100S * 3.35e12 * _MEMORY_EFFICIENCY
_H100_KV_TOKENS = int((_H100S * 80e9 * _MEMORY_SHARE - _70B_PARAMETERS * _BYTES) / _70B_KV_BYTES)
_H100_PREFILL = PrefillSpeed(
    seconds_per_token=_FLOPS_PER_PARAMETER * _70B_PARAMETERS / _H100_FLOPS,
    seconds_per_token_squared=_70B_ATTENTION_FLOPS / _H100_FLOPS,
    seconds_per_step=0.01,  # assumed: scheduling and launching
    tokens_per_step=8192,  # vLLM's --max-num-batched-tokens, as its server sets it on an H100
)

H100 = Hardware(
    name="h100",
    prefill=_H100_PREFILL,
    prefill_kv_tokens=_H100_KV_TOKENS,
    decode=DecodeSpeed(
        seconds_per_step=_70B_PARAMETERS * _BYTES / _H100_BYTES_PER_S,
        seconds_per_request=_FLOPS_PER_PARAMETER * _70B_PARAMETERS / _H100_FLOPS,
        seconds_per_kv_token=_70B_KV_BYTES / _H100_BYTES_PER_S,
        slots=256,  # --max-num-seqs, often set
    ),
    decode_kv_tokens=_H100_KV_TOKENS,
    local_prefill=_H100_PREFILL,
    # About 0.2 s between the legs was measured for NIXL, of which the transfer itself was 0.03 s
    # (vllm#51919). Four 400 Gb/s adapters, as in p5.48xlarge, at half of their bandwidth (assumed).
    link=Link(latency_s=0.17, bytes_per_token=_70B_KV_BYTES, bytes_per_s=4 * 50e9 * 0.5),
)

# A prefill pod of one Trainium2 chip: 667 TFLOPS dense bf16, 96 GiB, 2.9 TB/s (AWS Neuron
# documentation, Trainium2 architecture).
_TRN2_FLOPS = 667e12 * 0.4  # assumed
_TRN2_BYTES_PER_S = 2.9e12 * _MEMORY_EFFICIENCY
_TRN2_KV_TOKENS = int((96 * 2**30 * _MEMORY_SHARE - _8B_PARAMETERS * _BYTES) / _8B_KV_BYTES)
_TRN2_RANKS = 4
"""Chips of a decode pod, each a data-parallel rank."""
_TRN2_PREFILL = PrefillSpeed(
    seconds_per_token=_FLOPS_PER_PARAMETER * _8B_PARAMETERS / _TRN2_FLOPS,
    seconds_per_token_squared=_8B_ATTENTION_FLOPS / _TRN2_FLOPS,
    seconds_per_step=0.01,  # assumed
    tokens_per_step=None,  # --max-num-seqs 1 for prefill: Neuron's tutorial for disaggregation
    buckets=(512, 1024, 2048, 4096, 8192),  # static shapes; 8192 as in Neuron's examples
)

TRAINIUM2 = Hardware(
    name="trainium2",
    prefill=_TRN2_PREFILL,
    prefill_kv_tokens=_TRN2_KV_TOKENS,
    decode=DecodeSpeed(
        # Static shapes: a step takes the same however many of its slots are filled.
        seconds_per_step=_8B_PARAMETERS * _BYTES / _TRN2_BYTES_PER_S,
        seconds_per_request=0.0,
        seconds_per_kv_token=_8B_KV_BYTES / (_TRN2_BYTES_PER_S * _TRN2_RANKS),
        slots=4 * _TRN2_RANKS,  # four per data-parallel rank: Neuron's tutorial
    ),
    decode_kv_tokens=_TRN2_KV_TOKENS * _TRN2_RANKS,
    local_prefill=_TRN2_PREFILL,
    # 3.2 Tb/s of EFA per trn2.48xlarge of 16 chips, half of it reached (assumed).
    link=Link(latency_s=0.17, bytes_per_token=_8B_KV_BYTES, bytes_per_s=25e9 * 0.5),
)

HARDWARE = {hardware.name: hardware for hardware in (H100, TRAINIUM2)}

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("8P+8D", (1.0,) * 8, (1.0,) * 8),
        Shape("2P+4D", (1.0,) * 2, (1.0,) * 4),
        Shape("4P+4D-one-slow", (2.0, 1.0, 1.0, 1.0), (1.0,) * 4),
        Shape("8P+8D-two-workers", (1.0,) * 8, (1.0,) * 8, workers=2),
        Shape("8P+8D-four-workers", (1.0,) * 8, (1.0,) * 8, workers=4),
        Shape("8P+8D-two-routers", (1.0,) * 8, (1.0,) * 8, replicas=2),
        Shape("8P+8D-four-routers", (1.0,) * 8, (1.0,) * 8, replicas=4),
        Shape("8P+8D-eight-routers", (1.0,) * 8, (1.0,) * 8, replicas=8),
        Shape("64P+64D", (1.0,) * 64, (1.0,) * 64),
    )
}
