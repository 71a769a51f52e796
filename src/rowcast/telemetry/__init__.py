"""Metrics."""

from rowcast.telemetry.metrics import Metrics

__all__ = ["Metrics"]
