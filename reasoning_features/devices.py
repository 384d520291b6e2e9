"""Where tensors live: whether a device is there, and how much of its memory is free."""

from __future__ import annotations

from pathlib import Path

import torch

from reasoning_features.errors import UserError


def check_device(device: str) -> torch.device:
    """The device of this name.

    Raises:
        UserError: there is no such device on this machine.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"The device {device!r} is unknown: set DEVICE=cpu or DEVICE=cuda.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"The device {device} is not there (torch finds no CUDA): set DEVICE=cpu, or run where a GPU is."
        )
    return found


def free_memory(device: str) -> int | None:
    """Bytes that are free on a device, or None where the system does not tell."""
    found = check_device(device)
    if found.type == "cuda":
        return int(torch.cuda.mem_get_info(found)[0])
    table = Path("/proc/meminfo")
    if found.type != "cpu" or not table.is_file():
        return None
    lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
