"""What the server counts, for Prometheus."""

from __future__ import annotations

import prometheus_client as prometheus

LATENCY_BUCKETS_S = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one server, in a registry of their own.

    Labels hold no text of clients: unknown models are counted under the empty name.

    Attributes:
      registry: for `prometheus_client.generate_latest`.
      requests: predict requests by model, protocol and status code.
      latency: seconds from a request's start to its answer, refusals included.
      queue_length: requests admitted that no worker has taken up yet.
      batch_size: first dimension of the inputs of a run.
      version: the newest version that is available, by model; 0: none.
    """

    def __init__(self):
        self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)
        self.requests = prometheus.Counter(
            "serving_requests",
            "Predict requests.",
            ("model", "protocol", "code"),
            registry=self.registry,
        )
        self.latency = prometheus.Histogram(
            "serving_request_seconds",
            "Duration of predict requests.",
            ("protocol",),
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.queue_length = prometheus.Gauge(
            "serving_queue_length", "Requests waiting for a worker.", registry=self.registry
        )
        self.batch_size = prometheus.Histogram(
            "serving_batch_size",
            "Images (or rows) in one request.",
            buckets=BATCH_BUCKETS,
            registry=self.registry,
        )
        self.version = prometheus.Gauge(
            "serving_model_version",
            "Newest available version.",
            ("model",),
            registry=self.registry,
        )

    def page(self) -> bytes:
        """The page Prometheus scrapes."""
        return prometheus.generate_latest(self.registry)
