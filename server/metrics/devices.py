"""What GPUs tell of their memory."""

from collections.abc import Iterable

import torch
from prometheus_client.core import GaugeMetricFamily


def device_memory(devices: Iterable[torch.device]) -> GaugeMetricFamily:
    """Memory of each GPU among some devices, in bytes; a CPU has no sample.

    Kinds: ``allocated`` by tensors of this process, ``reserved`` by torch for them and what comes,
    ``free`` for anybody, and ``total``, which other processes share.
    """
    family = GaugeMetricFamily(
        "deqlm_device_memory_bytes", "Memory of a GPU, by kind", labels=("device", "kind")
    )
    gpus = {device for device in devices if device.type == "cuda"}
    for device in sorted(gpus, key=str):
        free, total = torch.cuda.mem_get_info(device)
        kinds = {
            "allocated": torch.cuda.memory_allocated(device),
            "reserved": torch.cuda.memory_reserved(device),
            "free": free,
            "total": total,
        }
        for kind, value in kinds.items():
            family.add_metric((str(device), kind), float(value))
    return family
