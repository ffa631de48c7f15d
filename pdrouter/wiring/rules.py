"""The rules of the rooms, each from what is set."""

from pdrouter.engine_http.client import ClientLimits
from pdrouter.engine_http.tls import EngineTls, EngineTlsRules
from pdrouter.engines.registry import SplitRules, Splits
from pdrouter.extproc.exchange_policy import ExchangePolicy
from pdrouter.extproc.header_limits import HeaderLimits
from pdrouter.extproc.limits import MESSAGE_OVERHEAD_BYTES
from pdrouter.extproc.tls import TlsFiles
from pdrouter.load.failures import EjectionRules
from pdrouter.load.retry_budget import RetryRules
from pdrouter.openai.headers import FORWARDED_TO_SIDE_LEGS
from pdrouter.routing.deadlines import DeadlineRules
from pdrouter.routing.policy import PolicyOptions
from pdrouter.routing.saturation import SaturationRules
from pdrouter.routing.session_affinity import AffinityRules
from pdrouter.serving.encoding import EncodeRules
from pdrouter.serving.fair_queue import FairnessRules
from pdrouter.serving.policy import DispatchPolicy
from pdrouter.serving.priorities import PriorityRules
from pdrouter.serving.release import ReleaseRules
from pdrouter.settings import SettingInvalid, Settings
from pdrouter.settings.choices import BlockRelease, EngineEncryption, Priority, Routing, TokenIds
from pdrouter.settings.key_files import read_key


def choose_policy_options(settings: Settings) -> PolicyOptions:
    """Return what is set of `pd` and its policies."""
    return PolicyOptions(
        compute_weight=settings.compute_weight,
        others_weight=settings.others_weight,
        away_cost=settings.away_cost,
        bucketing=settings.bucketing,
        prefill_imbalance_spread=settings.prefill_imbalance_spread,
        decode_imbalance_spread=settings.decode_imbalance_spread,
        decode_throughput_spread=settings.decode_throughput_spread,
        decode_score_ratio=settings.decode_score_ratio,
        standard_deviation_factor=settings.standard_deviation_factor,
        request_imbalance_spread=settings.request_imbalance_spread,
        preble_output_tokens=settings.preble_output_tokens,
        vtc_min_tokens=settings.vtc_min_tokens,
        vtc_max_tokens=settings.vtc_max_tokens,
        vtc_max_pod_load=settings.vtc_max_pod_load,
        vtc_fairness_weight=settings.vtc_fairness_weight,
        vtc_utilization_weight=settings.vtc_utilization_weight,
        locality_weight=settings.locality_weight,
        weight_running=settings.weight_running,
        weight_throughput=settings.weight_throughput,
        affinity=choose_affinity_rules(settings),
    )


def choose_dispatch_policy(settings: Settings) -> DispatchPolicy:
    """Return what is set of the way of a request."""
    return DispatchPolicy(
        default_strategy=settings.routing_algorithm,
        split_multimodal=settings.split_multimodal,
        on_prefill_failure=settings.on_prefill_failure,
        on_handoff_failure=settings.on_handoff_failure,
        forward_headers=settings.forward_headers,
        max_forwarded_bytes=settings.max_message_bytes - MESSAGE_OVERHEAD_BYTES,
        expose_pods=settings.expose_pods,
        trust_ec_locator=settings.trust_ec_locator,
        names_second=settings.pod_routing is Routing.OVERRIDE_HOST,
        deadlines=DeadlineRules(
            settings.default_target_s, settings.default_target_factor, dict(settings.classes)
        ),
        assumes_deadlines=settings.priority is not Priority.OFF,
        session_keys=settings.session_keys,
    )


def choose_affinity_rules(settings: Settings) -> AffinityRules:
    """Return what is set of how far the requests of a session stay together."""
    return AffinityRules(
        settings.session_affinity, settings.session_load_factor, settings.session_load_slack
    )


def choose_priority_rules(settings: Settings) -> PriorityRules:
    """Return what is set of the priorities that engines are told."""
    return PriorityRules(settings.priority, settings.trust_priority)


def choose_fairness_rules(settings: Settings) -> FairnessRules:
    """Return what is set of how users take turns."""
    return FairnessRules(
        saturation=SaturationRules(settings.fairness_backlog_s, settings.fairness_requests),
        longest_s=min(settings.fairness_wait_s, settings.prefill_timeout_s / 2),
        most=settings.fairness_queue,
        classes=dict(settings.classes),
        default_target_s=settings.default_target_s,
    )


def choose_encode_rules(settings: Settings) -> EncodeRules:
    """Return what is set of the encoding of media."""
    return EncodeRules(
        settings.encode_items,
        settings.encode_concurrency,
        settings.max_message_bytes - MESSAGE_OVERHEAD_BYTES,
        settings.rewrite_remote_host,
        each_leg_may=settings.split_multimodal,
    )


def choose_release_rules(settings: Settings) -> ReleaseRules:
    """Return what is set of the blocks that nobody fetches."""
    forwarded = (*FORWARDED_TO_SIDE_LEGS, *settings.forward_headers)
    return ReleaseRules(
        enabled=settings.release is BlockRelease.AUTO,
        timeout_s=settings.release_timeout_s,
        headers=choose_priority_rules(settings).keep(forwarded),
    )


def choose_ejection_rules(settings: Settings) -> EjectionRules:
    """Return what is set of the ejection of pods that fail."""
    return EjectionRules(
        after=settings.eject_after,
        backoff_s=settings.eject_s,
        longest_s=max(settings.eject_s, settings.eject_longest_s),
        share=settings.eject_share,
        asks=settings.eject_asks,
    )


def choose_retry_rules(settings: Settings) -> RetryRules:
    """Return what is set of how many requests may be tried again."""
    return RetryRules(
        share=settings.retry_budget_share,
        per_second=settings.retry_budget_per_second,
        window_s=settings.retry_budget_window_s,
    )


def limit_client(settings: Settings) -> ClientLimits:
    """Return what bounds the router's own requests to engines."""
    return ClientLimits(
        settings.prefill_connect_timeout_s,
        settings.prefill_response_timeout_s or settings.prefill_timeout_s,
        settings.max_message_bytes,
    )


def find_tls(settings: Settings) -> TlsFiles | None:
    """Return the files for TLS on the gRPC port; None where it is plain text."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return TlsFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def find_engine_tls(settings: Settings) -> EngineTls | None:
    """Return how engines are spoken to; None for plain text.

    Raises:
        CertificatesInvalid: the files cannot be used.
    """
    if settings.engine_tls is EngineEncryption.OFF:
        return None
    return EngineTls(
        EngineTlsRules(
            verified=settings.engine_tls is EngineEncryption.ON,
            authorities=settings.engine_ca,
            name=settings.engine_server_name,
            certificate=settings.engine_client_certificate,
            key=settings.engine_client_key,
        )
    )


def choose_exchange_policy(settings: Settings) -> ExchangePolicy:
    """Return what is set of the answers to requests.

    Raises:
        SettingInvalid: the file of a key cannot be read.
    """
    return ExchangePolicy(
        expose_pods=settings.expose_pods,
        explain_decisions=settings.explain_decisions,
        observation=settings.observe_tokens,
        header_limits=HeaderLimits(settings.max_headers, settings.max_header_bytes),
        dropped_headers=choose_priority_rules(settings).dropped_headers,
        forward_keys=settings.forward_keys,
        engine_key=_read_engine_key(settings),
    )


def _read_engine_key(settings: Settings) -> str:
    variable, path = "PDROUTER_ENGINE_API_KEY_FILE", settings.engine_key_file
    try:
        key = read_key(variable, path).decode("ascii")
    except UnicodeDecodeError:
        key = "\n"
    if not key.isprintable():
        raise SettingInvalid(f"{variable}={path}: a key is one line of printable characters")
    return key


def create_splits(settings: Settings) -> Splits:
    """Return how engines split requests, as it is set.

    Raises:
        SettingInvalid: the file of a key cannot be read.
    """
    return Splits(
        default=settings.kv_connector,
        nixl_means=settings.nixl_means,
        rules=SplitRules(
            settings.rewrite_remote_host,
            settings.leg_order,
            0
            if settings.pass_token_ids is TokenIds.OFF
            else settings.max_message_bytes - MESSAGE_OVERHEAD_BYTES,
            read_key("PDROUTER_TRTLLM_AUTH_KEY_FILE", settings.trtllm_auth_key_file),
            settings.trtllm_machine_id,
            settings.trtllm_order,
            settings.sglang_split_n,
        ),
    )
