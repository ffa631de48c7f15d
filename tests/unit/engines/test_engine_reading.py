"""What the metrics pages of engines say of their load."""

import dataclasses
from typing import Any

import pytest

from pdrouter.engines.reading import EngineReading, PageReader, RequestTotals
from pdrouter.engines.registry import find_dialect
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine_metrics import EngineMetrics


def read(engine: str, *lines: str) -> dict[str, Any]:
    """The numbers of a page that are not None."""
    reading = find_dialect(engine).read("\n".join(lines).encode())
    return {name: value for name, value in dataclasses.asdict(reading).items() if value is not None}


def totals(**known: tuple[float, float]) -> dict[str, Any]:
    """What a page says of requests, None for what it does not."""
    return dataclasses.asdict(RequestTotals(**known))


def geometry(**labels: str) -> str:
    """vLLM's series whose labels say how large its KV memory is."""
    return f"vllm:cache_config_info{write_labels(**labels)} 1.0"


def write_labels(**labels: object) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def test_a_vllm_page_is_understood() -> None:
    metrics = EngineMetrics(EngineConfig(block_size=16, kv_blocks=1000))
    metrics.watch_load(
        running=lambda: 7,
        waiting=lambda: 2,
        cache_usage=lambda: 0.25,
        handles_outstanding=lambda: 0,
        rooms_open=lambda: 0,
        encodings_outstanding=lambda: 0,
    )
    metrics.generation_tokens.inc(500)
    metrics.prefill_seconds.observe(0.5)
    metrics.prefill_seconds.observe(1.0)
    metrics.inter_token_seconds.observe(0.25)
    metrics.inter_token_seconds.observe(0.5)
    metrics.queue_seconds.observe(0.125)
    metrics.note_answer(prompt_tokens=100, output_tokens=30, decode_s=2.0)
    metrics.prompt_tokens.inc(100)
    assert find_dialect("vllm").read(metrics.exposition()) == EngineReading(
        running=7,
        waiting=2,
        kv_usage=0.25,
        kv_capacity_tokens=16_000,
        generated_tokens=500,
        prefill_seconds=0.75,
        gap_seconds=0.75,
        gaps=2,
        prompt_tokens=100,
        requests=RequestTotals(
            queue=(0.125, 1), prefill=(1.5, 2), decode=(2.0, 1), prompt=(100, 1), output=(30, 1)
        ),
    )


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["vllm:gpu_cache_usage_perc 0.5"], {"kv_usage": 0.5}),
        (
            ["vllm:kv_cache_usage_perc 0.0", "vllm:gpu_cache_usage_perc 0.5"],
            {"kv_usage": 0.0},
        ),
        (["vllm:kv_cache_usage_perc 1.0"], {"kv_usage": 1.0}),
        (["vllm:kv_cache_usage_perc 1.01"], {}),
        (["vllm:kv_cache_usage_perc NaN"], {}),
        (["vllm:num_requests_waiting_by_reason 4"], {}),
        ([geometry(block_size="16", num_gpu_blocks="None")], {}),
        ([geometry(block_size="16")], {}),
        (
            [geometry(block_size="8", kv_cache_size_tokens="463459", num_gpu_blocks="320")],
            {"kv_capacity_tokens": 463_459},
        ),
        (
            [geometry(block_size="8", kv_cache_size_tokens="None", num_gpu_blocks="320")],
            {"kv_capacity_tokens": 2_560},
        ),
        (
            [
                "vllm:request_prefill_time_seconds_sum 0",
                "vllm:request_prefill_time_seconds_count 0",
            ],
            {"requests": totals(prefill=(0, 0))},
        ),
        (["vllm:cpu_cache_usage_perc 0.25"], {"cpu_usage": 0.25}),
        (["vllm:prompt_tokens_total 9"], {"prompt_tokens": 9}),
        (
            ["vllm:request_decode_time_seconds_sum 6", "vllm:request_decode_time_seconds_count 2"],
            {"requests": totals(decode=(6, 2))},
        ),
        (["vllm:request_prefill_time_seconds_sum 3"], {}),
        (["vllm:request_prefill_time_seconds_count 3"], {}),
    ],
)
def test_vllm_pages_of_other_releases_and_states(lines: list[str], found: dict[str, Any]) -> None:
    assert read("vllm", *lines) == found


def test_data_parallel_ranks_and_models_of_vllm_are_added_up_and_shares_averaged() -> None:
    ranks = [('engine="0",model_name="m"', 1), ('engine="1",model_name="m"', 2)]
    assert read(
        "vllm",
        *(f"vllm:num_requests_running{{{labels}}} {3 * n}" for labels, n in ranks),
        *(f"vllm:num_requests_waiting{{{labels}}} {n}" for labels, n in ranks),
        *(f"vllm:kv_cache_usage_perc{{{labels}}} {n / 4}" for labels, n in ranks),
        *(f"vllm:generation_tokens_total{{{labels}}} {100 * n}" for labels, n in ranks),
        *(f"vllm:request_prefill_time_seconds_sum{{{labels}}} {n}" for labels, n in ranks),
        *(f"vllm:request_prefill_time_seconds_count{{{labels}}} 3" for labels, n in ranks),
        *(
            f'vllm:cache_config_info{{block_size="16",{labels},num_gpu_blocks="10"}} 1.0'
            for labels, n in ranks
        ),
    ) == {
        "running": 9,
        "waiting": 3,
        "kv_usage": 0.375,
        "kv_capacity_tokens": 320,
        "generated_tokens": 300,
        "prefill_seconds": 0.5,
        "requests": totals(prefill=(3, 6)),
    }


def test_an_sglang_page_is_understood() -> None:
    labels = 'model_name="m",engine_type="decode",tp_rank="0",pp_rank="0"'
    assert read(
        "sglang",
        f"sglang:num_running_reqs{{{labels}}} 4.0",
        f"sglang:num_queue_reqs{{{labels}}} 1.0",
        f"sglang:num_decode_prealloc_queue_reqs{{{labels}}} 2.0",
        f"sglang:num_decode_transfer_queue_reqs{{{labels}}} 3.0",
        f"sglang:num_prefill_bootstrap_queue_reqs{{{labels}}} 0.0",
        f"sglang:token_usage{{{labels}}} 0.28",
        f"sglang:gen_throughput{{{labels}}} 86.5",
        f'sglang:cache_config_info{{num_pages="100",page_size="64",{labels}}} 1.0',
        f"sglang:max_total_num_tokens{{{labels}}} 6399.0",
    ) == {
        "running": 4,
        "waiting": 6,
        "kv_usage": 0.28,
        "kv_capacity_tokens": 6_400,
        "generated_tokens_per_s": 86.5,
    }


def test_sglang_without_geometry_says_its_capacity_in_tokens() -> None:
    assert read("sglang", "sglang:max_total_num_tokens 6399.0") == {"kv_capacity_tokens": 6_399}


def test_ranks_of_sglang_that_share_their_requests_count_once() -> None:
    lines = [
        f"sglang:num_running_reqs{write_labels(dp_rank=dp, model='m', pp_rank=pp, tp_rank=tp)} {n}"
        for dp, pp, tp, n in (
            (0, 0, 0, 5),
            (0, 0, 1, 4),
            (0, 1, 0, 5),
            (1, 0, 2, 1),
            (1, 0, 3, 2),
        )
    ]
    assert read("sglang", *lines) == {"running": 7}


def test_a_tensorrt_llm_page_is_understood() -> None:
    assert find_dialect("trtllm").path == "/prometheus/metrics"
    assert read(
        "trtllm",
        'trtllm_num_requests_running{model_name="m"} 4.0',
        'trtllm_num_requests_waiting{model_name="m"} 1.0',
        'trtllm_kv_cache_utilization{model_name="m"} 0.5',
    ) == {"running": 4, "waiting": 1, "kv_usage": 0.5}


def test_an_xllm_page_is_understood() -> None:
    assert read("xllm", "kv_cache_utilization 0.5", "engine_utilization 0.25") == {
        "kv_usage": 0.5,
        "utilization": 0.25,
    }


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_the_page_of_anything_else_says_nothing(engine: str) -> None:
    page = "process_cpu_seconds_total 3\nnum_requests_running 4\n"
    assert read(engine, page) == {}


def test_an_engine_that_is_not_known_speaks_as_vllm_does() -> None:
    assert find_dialect("vllm-neuron") is find_dialect("vllm")


def test_a_label_with_too_many_digits_is_no_number() -> None:
    page = b'vllm:cache_config_info{block_size="%s",num_gpu_blocks="10"} 1\n' % (b"9" * 5000)
    assert find_dialect("vllm").read(page).kv_capacity_tokens is None


@pytest.mark.parametrize(("engine", "label"), [("vllm", "engine"), ("sglang", "dp_rank")])
def test_a_rank_is_told_from_the_others_on_its_page(engine: str, label: str) -> None:
    running = {"vllm": "num_requests_running", "sglang": "num_running_reqs"}[engine]
    page = "\n".join(
        f"{engine}:{running}{write_labels(**{label: rank})} {rank + 1}" for rank in range(3)
    ).encode()
    dialect = find_dialect(engine)
    assert [dialect.read(page, rank).running for rank in (None, 0, 2)] == [6, 1, 3]
    assert dialect.read(page, 7).running is None


@pytest.mark.parametrize("engine", ["vllm", "trtllm"])
def test_where_nothing_tells_ranks_apart_each_has_the_whole_page(engine: str) -> None:
    name = {"vllm": "vllm:num_requests_running", "trtllm": "trtllm_num_requests_running"}[engine]
    page = f"{name} 4".encode()
    dialect = find_dialect(engine)
    assert dialect.read(page, 1) == dialect.read(page)


NEURON = "vllm_neuron:neff_execution_count"


@pytest.mark.parametrize(
    ("names", "buckets"),
    [
        (["prefill_s1024", "prefill_s512", "decode_b4"], (512, 1024)),
        (["prefill_s8192", "prefill_b1_s8192"], (8192,)),
        (["prefill_s2048_ctx8192"], (2048,)),
        ([f"prefill_s{size}" for size in range(1, 65)], tuple(range(1, 65))),
        # None of these says a length that an engine can have, or there are too many of them.
        ([f"prefill_s{size}" for size in range(1, 66)], None),
        (["decode_s1024", "prefill", "prefill_s", "prefill_s0", "prefill_s-5", "s1024"], None),
        (["prefill_s" + "9" * 8, "prefill_s1e3", "xprefill_s1024", "prefill_s1024;", ""], None),
        (["prefill_" + "a1_" * 5000 + "s16"], None),
        ([], None),
    ],
)
@pytest.mark.parametrize("suffix", ["", "_total"])
def test_the_buckets_of_a_neuron_engine_are_in_the_names_of_what_it_ran(
    names: list[str], buckets: tuple[int, ...] | None, suffix: str
) -> None:
    lines = [
        f"{NEURON}{suffix}{write_labels(model_name='m', bucket_name=name)} {float(count)}"
        for count, name in enumerate(names)
    ]
    found = read("vllm", *lines)
    assert found.pop("computes_prompts", None) == (buckets is not None if names else None)
    assert found == ({} if buckets is None else {"prefill_buckets": buckets})


def test_buckets_and_padding_are_those_of_the_rank_that_is_asked_for() -> None:
    page = "\n".join(
        f"{name}{write_labels(engine=rank, **labels)} {value}"
        for name, labels, rank, value in (
            (NEURON, {"bucket_name": "prefill_s512"}, 0, 3),
            (NEURON, {"bucket_name": "prefill_s4096"}, 1, 1),
            ("vllm_neuron:num_batched_tokens_padding", {}, 0, 40),
            ("vllm_neuron:num_batched_tokens_padding", {}, 1, 2),
        )
    ).encode()
    dialect = find_dialect("vllm")
    assert dialect.read(page) == EngineReading(
        prefill_buckets=(512, 4096), padded_tokens=42, computes_prompts=True
    )
    assert dialect.read(page, 1) == EngineReading(
        prefill_buckets=(4096,), padded_tokens=2, computes_prompts=True
    )


@pytest.mark.parametrize("suffix", ["", "_total", "_sum"])
def test_padding_is_read_whatever_kind_of_metric_it_is(suffix: str) -> None:
    found = read("vllm", f"vllm_neuron:num_batched_tokens_padding{suffix} 7")
    assert found == {"padded_tokens": 7, "computes_prompts": False}


def test_the_time_between_tokens_is_that_of_the_newer_name() -> None:
    new, old = "vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"
    lines = [f"{old}_sum 8", f"{old}_count 4"]
    assert read("vllm", *lines) == {"gap_seconds": 8, "gaps": 4}
    lines += [f"{new}_sum 3", f"{new}_count 2"]
    assert read("vllm", *lines) == {"gap_seconds": 3, "gaps": 2}


def test_a_simulated_neuron_engine_names_what_it_has_run() -> None:
    config = EngineConfig(prefill_buckets=(128, 512))
    metrics = EngineMetrics(config)
    metrics.note_passes(512, 3, padding=100)
    found = read("vllm", metrics.exposition().decode())
    assert (found["prefill_buckets"], found["padded_tokens"]) == ((128, 512), 100)
    assert "neuron" not in EngineMetrics(EngineConfig()).exposition().decode()


def test_what_requests_take_on_sglang_and_trtllm_follows_from_their_times_to_two_tokens() -> None:
    times = {"queue": (1, 4), "first": (3, 4), "last": (11, 5)}

    def write(names: dict[str, str]) -> list[str]:
        return [
            f"{names[key]}_{part} {value}"
            for key, total in times.items()
            for part, value in zip(("sum", "count"), total, strict=True)
        ]

    expected = totals(queue=(1, 4), prefill=(2, 4), decode=(8, 5))
    trtllm = {
        "queue": "trtllm_request_queue_time_seconds",
        "first": "trtllm_time_to_first_token_seconds",
        "last": "trtllm_e2e_request_latency_seconds",
    }
    assert read("trtllm", *write(trtllm)) == {"requests": expected}
    sglang = {
        "queue": "sglang:queue_time_seconds",
        "first": "sglang:time_to_first_token_seconds",
        "last": "sglang:e2e_request_latency_seconds",
    }
    counters = [
        "sglang:prompt_tokens_total 500",
        "sglang:generation_tokens_total 50",
        "sglang:num_requests_total 5",
        "sglang:utilization 0.75",
    ]
    assert read("sglang", *write(sglang), *counters) == {
        "utilization": 0.75,
        "prompt_tokens": 500,
        "requests": expected | {"prompt": (500, 5), "output": (50, 5)},
    }
    assert read("sglang", *write(sglang)[2:]) == {
        "requests": totals(queue=(0, 0), prefill=(3, 4), decode=(8, 5))
    }


@pytest.mark.parametrize("rank", [None, 1])
def test_a_page_is_read_anew_only_where_it_says_something_else(rank: int | None) -> None:
    reader = PageReader(find_dialect("vllm"), rank)
    page = b'process_cpu_seconds_total %d\nvllm:num_requests_running{engine="1"} %d\n'
    first = reader.read(page % (1, 4))
    assert (first.running, reader.read(page % (2, 4)) is first) == (4, True)
    assert reader.read(page % (3, 5)).running == 5
    assert reader.read(b"") == EngineReading()
    assert reader.read(page % (4, 4)).running == 4
