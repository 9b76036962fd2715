"""Prometheus figures of the API; with several worker processes they are summed through files."""

import os
import time

from flask import Flask, Response, g, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

# prometheus_client itself decides by this variable, when it is imported, where values live.
MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "tanhui_request_seconds",
            "Time to answer, by endpoint, method and status",
            ("endpoint", "method", "status"),
            buckets=BUCKETS_S,
            registry=self._registry,
        )

    def observe(self, response: Response) -> Response:
        # Labels come from the URL map, never from the sender: the number of series is bounded.
        method = request.method if request.endpoint else "other"
        self._requests.labels(
            request.endpoint or "none", method, str(response.status_code)
        ).observe(time.perf_counter() - g.began_at_s)
        return response

    def exposition(self) -> Response:
        """What `/metrics` answers."""
        registry = self._registry
        if MULTIPROCESS_DIR in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)

    def register(self, app: Flask) -> None:
        app.after_request(self.observe)
