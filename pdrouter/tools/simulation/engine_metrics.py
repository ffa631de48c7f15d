"""The engine's numbers, under its own names, and under `simulation:` what only a judge counts."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pdrouter.tools.simulation.config import EngineConfig

_LOAD_NAMES = {
    "vllm": ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"),
    "trtllm": ("num_requests_running", "num_requests_waiting", "kv_cache_utilization"),
    "sglang": ("num_running_reqs", "num_queue_reqs", "token_usage"),
}
_SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    60,
)
_TOKENS = (1, 10, 100, 1000, 10_000, 100_000)


class EngineMetrics:
    """All series of one engine, in a registry of its own.

    Prometheus appends `_total` to the names of counters, as it does in vLLM.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._registry = CollectorRegistry()
        self._engine = config.engine
        self._prefix = "trtllm_" if config.engine == "trtllm" else f"{config.engine}:"
        self._model = config.base_model
        self._declare_own()
        self._declare_judged()
        self._passes, self._padding = self._declare_size(config)
        self._items_encoding = self._most_items_encoding = 0
        self._encoding = self._declare_media()

    def _declare_own(self) -> None:
        """Declare what real engines count, under their names."""
        self.prompt_tokens = self._engine_counter("prompt_tokens", "Prefill tokens processed.")
        self.generation_tokens = self._engine_counter("generation_tokens", "Tokens generated.")
        self.expired_handles = self._engine_counter(
            "nixl_num_kv_expired_reqs", "Requests whose KV blocks expired before the fetch."
        )
        self.late_fetches = self._engine_counter(
            "nixl_num_notifications_after_expiry",
            "Fetches, and releases, that came after the expiry.",
        )
        self.failed_transfers = self._engine_counter(
            "nixl_num_failed_transfers", "KV transfers that failed."
        )
        self.failed_releases = self._engine_counter(
            "nixl_num_failed_notifications", "Prefill engines that could not be told of a release."
        )
        self.transfer_seconds = self._engine_histogram(
            "nixl_xfer_time_seconds", "KV transfer time."
        )
        self.prefill_seconds = self._engine_histogram(
            "request_prefill_time_seconds", "Time spent in prefill."
        )
        self.queue_seconds = self._engine_histogram(
            "request_queue_time_seconds", "Time spent waiting for a slot."
        )
        self._decode_seconds = self._engine_histogram(
            "request_decode_time_seconds", "Time spent in decode."
        )
        self._prompt_lengths = self._engine_histogram(
            "request_prompt_tokens", "Prefill tokens of each request.", _TOKENS
        )
        self._output_lengths = self._engine_histogram(
            "request_generation_tokens", "Tokens generated for each request.", _TOKENS
        )
        self.first_token_seconds = self._engine_histogram(
            "time_to_first_token_seconds", "Time to the first token."
        )
        self.inter_token_seconds = self._engine_histogram(
            "inter_token_latency_seconds", "Time between two tokens."
        )

    def _declare_judged(self) -> None:
        """Declare what a judge counts."""
        self.contract_violations = self._counter(
            "contract_violations", "Requests that a router must not send.", ("reason",)
        )
        self.kv_fetches = self._counter("kv_fetches", "Fetches answered, by result.", ("result",))
        self.kv_releases = self._counter(
            "kv_releases", "Releases of blocks that nobody fetched, by result.", ("result",)
        )
        self.prompt_mismatches = self._counter(
            "prompt_mismatches", "Fetches whose prompt is not the one prefilled."
        )
        self.recomputed_prompts = self._counter(
            "recomputed_prompts", "Decode legs whose blocks did not come before their deadline."
        )
        self.kv_source_lookups = self._counter(
            "kv_source_lookups", "Questions for the beginning of a prompt, by result.", ("result",)
        )
        self.media_items = self._counter(
            "media_items", "Media encoded for others, fetched, or encoded here.", ("result",)
        )
        self.room_timeouts = self._counter(
            "room_timeouts", "Legs that waited in a room until their time was over."
        )
        self.unexpected_role = self._counter(
            "unexpected_role", "Requests served that belong to an engine of the other role."
        )
        self.duplicate_request_ids = self._counter(
            "duplicate_request_ids", "Requests refused because their id was already running."
        )
        self.aborted_requests = self._counter(
            "aborted_requests", "Requests whose client left before the end of the answer."
        )

    def _declare_size(self, config: EngineConfig) -> tuple[Counter | None, Counter | None]:
        """Declare what the engine is built for; give the counters of static shapes, if it has any.

        The first is by the name of what was executed.
        """
        if config.engine == "sglang":
            self._gauge("max_total_num_tokens", "Size of the KV cache, in tokens.").set(
                config.block_size * config.kv_blocks
            )
        if config.engine != "vllm":
            return None, None
        geometry = Gauge(
            "vllm:cache_config_info",
            "Cache geometry.",
            ("model_name", "block_size", "num_gpu_blocks"),
            registry=self._registry,
        )
        geometry.labels(self._model, str(config.block_size), str(config.kv_blocks)).set(1)
        if not config.prefill_buckets:
            return None, None
        passes = Counter(
            "vllm_neuron:neff_execution_count",
            "Executions of what was compiled.",
            ("model_name", "bucket_name"),
            registry=self._registry,
        )
        padding = Counter(
            "vllm_neuron:num_batched_tokens_padding",
            "Tokens computed to fill up buckets.",
            ("model_name",),
            registry=self._registry,
        )
        for bucket in config.prefill_buckets:
            passes.labels(self._model, f"prefill_s{bucket}").inc()  # It has warmed up.
        return passes, padding.labels(self._model)

    def _declare_media(self) -> tuple[Gauge, Gauge]:
        """Declare how many media are being encoded, and how many were at most."""
        return (
            self._gauge_of_judge("media_encoding", "Media that are being encoded."),
            self._gauge_of_judge("most_media_encoding", "The most that were at once."),
        )

    def note_encoding(self, items: int) -> None:
        """Count media whose encoding begins, or, if it is a negative number, ends."""
        now, most = self._encoding
        self._items_encoding += items
        now.set(self._items_encoding)
        self._most_items_encoding = max(self._most_items_encoding, self._items_encoding)
        most.set(self._most_items_encoding)

    def note_answer(self, *, prompt_tokens: int, output_tokens: int, decode_s: float) -> None:
        """Count a request that has been answered."""
        self._prompt_lengths.observe(prompt_tokens)
        self._output_lengths.observe(output_tokens)
        self._decode_seconds.observe(decode_s)

    def note_passes(self, bucket: int, passes: int, *, padding: int) -> None:
        """Count the passes of a prompt through an engine of static shapes."""
        if self._passes is not None and self._padding is not None:
            self._passes.labels(self._model, f"prefill_s{bucket}").inc(passes)
            self._padding.inc(padding)

    def watch_load(
        self,
        *,
        running: Callable[[], float],
        waiting: Callable[[], float],
        cache_usage: Callable[[], float],
        handles_outstanding: Callable[[], float],
        rooms_open: Callable[[], float],
        encodings_outstanding: Callable[[], float],
    ) -> None:
        """Declare the gauges, which are read when they are scraped."""
        names = _LOAD_NAMES[self._engine]
        for name, documentation, read in zip(
            names,
            (
                "Requests that have a slot.",
                "Requests that wait for a slot.",
                "KV blocks in use; 1 is all of them.",
            ),
            (running, waiting, cache_usage),
            strict=True,
        ):
            self._gauge(name, documentation).set_function(read)
        for name, documentation, read in (
            ("kv_handles_outstanding", "Handles that can still be fetched.", handles_outstanding),
            ("rooms_open", "Rooms that a leg has entered and not left.", rooms_open),
            (
                "encodings_outstanding",
                "Encoded media that can still be fetched.",
                encodings_outstanding,
            ),
        ):
            self._gauge_of_judge(name, documentation).set_function(read)

    def exposition(self) -> bytes:
        """Give all series in Prometheus' text format."""
        return generate_latest(self._registry)

    def value(self, name: str) -> float:
        """Add up all series of one name, whatever their labels; 0 if there are none."""
        return sum(
            sample.value
            for family in self._registry.collect()
            for sample in family.samples
            if sample.name == name
        )

    def split_value(self, name: str, label: str) -> dict[str, float]:
        """Give the value of each series of one name, by the value of a label."""
        return {
            sample.labels[label]: sample.value
            for family in self._registry.collect()
            for sample in family.samples
            if sample.name == name
        }

    def _gauge(self, name: str, documentation: str) -> Gauge:
        gauge = Gauge(
            f"{self._prefix}{name}", documentation, ("model_name",), registry=self._registry
        )
        return gauge.labels(self._model)

    def _gauge_of_judge(self, name: str, documentation: str) -> Gauge:
        return Gauge(f"simulation:{name}", documentation, registry=self._registry)

    def _engine_counter(self, name: str, documentation: str) -> Counter:
        counter = Counter(
            f"{self._prefix}{name}", documentation, ("model_name",), registry=self._registry
        )
        return counter.labels(self._model)

    def _engine_histogram(
        self, name: str, documentation: str, buckets: Sequence[float] = _SECONDS
    ) -> Histogram:
        histogram = Histogram(
            f"{self._prefix}{name}",
            documentation,
            ("model_name",),
            buckets=buckets,
            registry=self._registry,
        )
        return histogram.labels(self._model)

    def _counter(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"simulation:{name}", documentation, labels, registry=self._registry)
