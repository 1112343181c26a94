"""Which settings each part of the service reads: those that its `--help` lists."""

from __future__ import annotations

from service.settings import Settings


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SERVE_ONLY = frozenset({"workers", "rest_processes", "grpc_processes", "front_end_timeout_ms"})
EVERY_PART = _names(
    """
    host drain_timeout_ms log_level log_format otlp_endpoint trace_sample_ratio model_control worker_address
    wire_key_file insecure_wire heartbeat_interval_ms worker_timeout_ms
    """
)
WORKER = EVERY_PART | _names(
    """
    worker_metrics_port models_dir models split model_weights device precision state_dir compute_threads
    served_models_file batch_timeout_ms self_check_interval_ms max_queue_images max_queue_mpx max_batch_images
    max_batch_mpx
    """
)
FRONT_END = EVERY_PART | _names(
    """
    api_keys_file rate_limit_per_s rate_limit_burst trusted_proxies forwarded_header prepare_threads fast_decode
    model_control_timeout_ms max_image_bytes max_image_mpx max_images max_tiles max_request_bytes max_in_flight
    max_in_flight_bytes max_decoded_bytes max_connections fetch_urls fetch_private_networks fetch_timeout_ms
    max_fetches request_timeout_ms access_log
    """
)
REST = FRONT_END | _names(
    """
    http_port http_tls_certificate http_tls_key http_tls_client_ca cors_origins deepstack_at_root protected_paths
    """
)
GRPC = FRONT_END | _names(
    """
    grpc_port grpc_metrics_port grpc_tls_certificate grpc_tls_key grpc_tls_client_ca grpc_compression
    grpc_max_connection_age_ms grpc_max_connection_age_grace_ms max_stream_in_flight
    """
)

SETTINGS_OF = {"serve": frozenset(Settings.model_fields), "worker": WORKER, "rest": REST, "grpc": GRPC}
"""By the name of the command. `serve` starts all others."""
