"""Spans of calls, for collectors of OpenTelemetry; only ``tracer`` and ``exporting`` import it."""
