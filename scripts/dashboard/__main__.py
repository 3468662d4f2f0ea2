"""Writes deploy/grafana/deqlm.json, the dashboard; ``--check`` tells whether it is up to date."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.dashboard import engine, requests
from scripts.dashboard.panels import Panel

TARGET = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "deqlm.json"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH, _ROW_HEIGHT = 24, 1


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana takes it."""
    return {
        "uid": "deqlm",
        "title": "deqlm",
        "tags": ["deqlm"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": _laid_out(),
    }


def _variables() -> list[dict[str, Any]]:
    names = {"instance": "deqlm_ready", "model": "deqlm_sessions"}
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "data source"},
        *(
            {
                "name": label,
                "type": "query",
                "datasource": _SOURCE,
                "query": {"query": f"label_values({metric}, {label})", "refId": label},
                "refresh": 2,
                "multi": True,
                "includeAll": True,
                "allValue": ".*",
                "current": {"text": "All", "value": "$__all"},
            }
            for label, metric in names.items()
        ),
    ]


def _laid_out() -> list[dict[str, Any]]:
    """Rows one below the other, the panels of each from left to right."""
    made: list[dict[str, Any]] = []
    y = 0
    for title, panels in (*requests.ROWS, *engine.ROWS):
        place = {"x": 0, "y": y, "w": _WIDTH, "h": _ROW_HEIGHT}
        made.append({"type": "row", "title": title, "gridPos": place, "panels": []})
        y += _ROW_HEIGHT
        x = height = 0
        for panel in panels:
            if x + panel.width > _WIDTH:
                x, y, height = 0, y + height, 0
            height = max(height, panel.height)
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            made.append(_made(panel) | {"gridPos": place})
            x += panel.width
        y += height
    return [panel | {"id": number} for number, panel in enumerate(made, start=1)]


def _made(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": panel.least}
    if panel.kind == "timeseries":
        defaults["custom"] = {"fillOpacity": 10, "showPoints": "never", "lineWidth": 1}
    if panel.kind == "stat":
        steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
        if panel.bad_from is not None:
            steps.append({"color": "red", "value": panel.bad_from})
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "targets": _targets(panel),
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "heatmap":
        return {"calculate": False, "yAxis": {"unit": panel.unit}, "cellGap": 0}
    if panel.kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value"}
    return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}


def _targets(panel: Panel) -> list[dict[str, Any]]:
    is_table, is_heatmap = panel.kind == "table", panel.kind == "heatmap"
    return [
        {
            "refId": chr(ord("A") + number),
            "datasource": _SOURCE,
            "expr": expression,
            "legendFormat": legend,
            "exemplar": panel.exemplars,
            "format": "table" if is_table else "heatmap" if is_heatmap else "time_series",
            "instant": is_table,
        }
        for number, (legend, expression) in enumerate(panel.queries)
    ]


def main(arguments: Sequence[str]) -> int:
    """Write it, or tell whether it is as it should be; the exit code."""
    text = json.dumps(dashboard(), indent=1) + "\n"
    if "--check" in arguments:
        return int(not TARGET.is_file() or TARGET.read_text("utf-8") != text)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
