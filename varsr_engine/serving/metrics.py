"""Prometheus metrics, of requests as they end, and of the engine's queue when it is asked. Labels are of fixed sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

import varsr_engine
from varsr_engine.engine.engine import Engine
from varsr_engine.serving.budget import MemoryBudget
from varsr_engine.serving.record import Record

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """A registry of its own: two servers in one process do not meet."""

    def __init__(self, loaded: Callable[[], Engine | None], budget: MemoryBudget) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("varsr_requests", "Requests that ended.", ["route", "code"], registry=registry)

        def seconds(name: str, text: str, labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(f"varsr_{name}_seconds", text, labels, buckets=SECONDS, registry=registry)

        self._request = seconds("request", "From a request's head to the end of its answer.", ("route",))
        self._queue = seconds("queue", "From the decoded image to its result, without the model's time.")
        self._model = seconds("model", "The model's time of an image, its batches' shared.")
        self._encode = seconds("encode", "Writing an image in its format.")
        self.decode = seconds("decode", "Checking and decoding an image.")
        self.first_preview = seconds("time_to_first_preview", "From a request's head to its first preview.")
        self._megapixels = Counter("varsr_output_megapixels", "Pixels of answers, in millions.", registry=registry)
        registry.register(_EngineCollector(loaded, budget))

    def ended(self, record: Record) -> None:
        """A request has its answer, or none any more."""
        self._requests.labels(record.route, record.code).inc()
        self._request.labels(record.route).observe(record.elapsed)
        for histogram, value in (
            (self._queue, record.queue),
            (self._model, record.model),
            (self._encode, record.encode),
        ):
            if value is not None:
                histogram.observe(value)
        if record.output is not None and record.code == "ok":
            self._megapixels.inc(record.output[0] * record.output[1] / 1e6)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """The engine's own counts, read when they are asked for."""

    def __init__(self, loaded: Callable[[], Engine | None], budget: MemoryBudget) -> None:
        self._loaded, self._budget = loaded, budget

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("varsr_held_bytes", "Of bodies and pictures of live requests.", self._budget.held)
        engine = self._loaded()
        info = GaugeMetricFamily(
            "varsr_build_info", "What runs; the value is 1.", labels=["version", "model", "device"]
        )
        known = ("", "") if engine is None else (engine.model_id, str(engine.device))
        info.add_metric([varsr_engine.__version__, *known], 1)
        yield info
        if engine is None:
            return
        stats = engine.stats()
        yield GaugeMetricFamily("varsr_queue_units", "Tiles of live requests.", stats.queued_units)
        running = stats.queued_units - stats.waiting_units
        yield GaugeMetricFamily("varsr_running_rows", "Tiles that run, or wait for their image's others.", running)
        yield CounterMetricFamily("varsr_tiles", "Tiles that were run.", stats.units_run)
        yield CounterMetricFamily("varsr_busy_seconds", "The engine's, in batches and finishes.", stats.busy_seconds)
        yield CounterMetricFamily("varsr_cancelled", "Requests that were cancelled.", stats.cancelled)
        yield CounterMetricFamily("varsr_expired", "Requests whose deadline passed.", stats.expired)
        yield CounterMetricFamily("varsr_rejected", "Requests that the queue refused.", stats.rejected)
        sizes = stats.batch_sizes
        buckets = [(str(le), float(sum(n for size, n in sizes.items() if size <= le))) for le in BATCHES]
        yield HistogramMetricFamily(
            "varsr_batch_rows",
            "Tiles a batch.",
            buckets=[*buckets, ("+Inf", float(sum(sizes.values())))],
            sum_value=float(sum(size * n for size, n in sizes.items())),
        )
