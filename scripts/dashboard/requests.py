"""Rows about requests: how many, how long, which ones were refused."""

from scripts.dashboard.panels import (
    HERE,
    MODEL,
    SOLVED,
    SUCCESS,
    Panel,
    Row,
    figure,
    gauge,
    quantiles,
    rate,
    within,
)

ROWS: tuple[Row, ...] = (
    (
        "Now",
        (
            figure("Servers that take calls", f"sum(deqlm_ready{{{HERE}}})"),
            figure("Requests", f"sum({rate(SUCCESS, 'model')})", "reqps"),
            figure(
                "Tokens a second",
                f"sum({rate('deqlm_scored_tokens_total', 'model')})"
                f" + sum({rate('deqlm_generation_tokens_total', 'model')})",
            ),
            figure("Calls running", f"sum(deqlm_calls_running{{{HERE}}})"),
            figure("Requests waiting", f"sum(deqlm_num_requests_waiting{{{MODEL}}})"),
            figure("Sessions", f"sum(deqlm_sessions{{{MODEL}}})"),
            figure(
                "Refused",
                f"sum({rate('deqlm_rejections_total', 'model')}) / sum({rate(SUCCESS, 'model')})",
                "percentunit",
                0.05,
            ),
            figure(
                "Tokens not converged",
                f"sum({rate('deqlm_unconverged_tokens_total', 'model')}) / sum({SOLVED})",
                "percentunit",
                0.01,
            ),
        ),
    ),
    (
        "Latency",
        (
            quantiles("Time to first token", "deqlm_time_to_first_token_seconds"),
            quantiles("Between tokens", "deqlm_inter_token_latency_seconds"),
            quantiles("Whole calls", "deqlm_e2e_request_latency_seconds", "Of streams as well."),
            quantiles("Queue", "deqlm_request_queue_time_seconds"),
            quantiles("Prefill", "deqlm_request_prefill_time_seconds"),
            quantiles("Decode", "deqlm_request_decode_time_seconds"),
            quantiles("Time per output token", "deqlm_request_time_per_output_token_seconds"),
            within("First token within", "deqlm_time_to_first_token_seconds", "0.1", "0.5", "1.0"),
            within("Tokens within", "deqlm_inter_token_latency_seconds", "0.025", "0.05", "0.1"),
        ),
    ),
    (
        "Load",
        (
            Panel(
                title="Requests running and waiting",
                queries=(
                    ("running {{model}}", gauge("deqlm_num_requests_running", "model")),
                    ("waiting {{model}}", gauge("deqlm_num_requests_waiting", "model")),
                    ("parked {{model}}", gauge("deqlm_num_texts_parked", "model")),
                ),
            ),
            Panel(
                title="Waiting, by what for",
                queries=(("{{reason}}", gauge("deqlm_num_requests_waiting_by_reason", "reason")),),
            ),
            Panel(
                title="Tokens waiting",
                queries=(("{{model}}", gauge("deqlm_num_tokens_waiting", "model")),),
            ),
            Panel(
                title="Calls running",
                queries=(("{{method}}", gauge("deqlm_calls_running", "method", where=HERE)),),
            ),
            Panel(
                title="Ends of calls",
                queries=(("{{finished_reason}}", rate(SUCCESS, "finished_reason")),),
                unit="reqps",
            ),
            Panel(
                title="Refusals",
                queries=(
                    ("{{reason}}", rate("deqlm_rejections_total", "reason")),
                    ("quota {{quota}}", rate("deqlm_quota_refusals_total", "quota", where=HERE)),
                ),
                unit="reqps",
            ),
            Panel(
                title="Errors",
                queries=(("{{code}}", rate("deqlm_errors_total", "code", where=HERE)),),
                unit="reqps",
            ),
            quantiles("Refusals told after", "deqlm_refusal_seconds"),
            Panel(
                title="Callers turned away",
                queries=(("{{reason}}", rate("deqlm_auth_failures_total", "reason", where=HERE)),),
                unit="reqps",
            ),
            Panel(
                title="Tolerances loosened",
                queries=(
                    ("loosening {{model}}", f"max by (model) (deqlm_loosening{{{MODEL}}})"),
                    ("tokens a second", rate("deqlm_loosened_tokens_total", "model")),
                ),
            ),
        ),
    ),
)
