"""What a profile will take in downloads and memory; refused, before anything is begun, if it does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasoning_features import hub, paths
from reasoning_features.errors import UserError
from reasoning_features.files import read_json
from reasoning_features.settings import (
    AUTOENCODERS,
    MODELS,
    PINNED,
    TEXTS,
    ProblemSource,
    Settings,
    TextSource,
)

if TYPE_CHECKING:
    import torch

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
OPTIONAL = frozenset({"contrast", "base", "second_subject", "second_autoencoder", "solutions_text"})


@dataclass(frozen=True)
class Part:
    """A thing that a profile names: its bytes, those to fetch, and why it is out of reach."""

    setting: str
    reference: str
    size: int = 0
    missing: int = 0
    problem: str = ""


def parts(settings: Settings) -> list[Part]:
    """Everything that a profile reads, each once, with the sizes that the machine or the hub tell."""
    found: dict[str, Part] = {}
    for setting in (*PINNED, *TEXTS):
        for each in () if setting in settings.unread else settings.named(setting):
            key = each if isinstance(each, str) else f"{each.dataset} {each.name} {each.split}"
            found[key] = found.get(key) or _part(setting, each)
    return list(found.values())


def _part(setting: str, named: str | TextSource | ProblemSource) -> Part:
    kind: hub.Kind = "model" if isinstance(named, str) else "dataset"
    reference = named if isinstance(named, str) else named.dataset
    if hub.is_local(reference):
        path = paths.resolve(reference)
        files = [path] if path.is_file() else path.rglob("*.safetensors" if kind == "model" else "*")
        return Part(setting, reference, sum(file.stat().st_size for file in files if file.is_file()))
    try:
        patterns = (
            None if isinstance(named, str) else hub.dataset_files(named.dataset, named.name, named.split)
        )
        size, missing = hub.sizes(reference, kind, patterns)
    except UserError as error:
        return Part(setting, reference, problem=str(error))
    return Part(setting, reference, size, missing, hub.refusal(reference, kind) if missing else "")


def tell(settings: Settings) -> None:
    """Print what a profile will take; raises as :func:`check`."""
    found = parts(settings)
    for part in found:
        state = f"{gigabytes(part.missing)} to fetch" if part.missing else "here"
        state = "out of reach" if part.problem else state
        print(f"{part.setting:28} {part.reference:72} {gigabytes(part.size):>10}  {state}")
    fetch, free = sum(part.missing for part in found), free_memory(settings.device)
    print(f"To fetch: {gigabytes(fetch)}; {gigabytes(hub.free_disk())} are free.")
    room = "" if free is None else f"; {gigabytes(free)} are free"
    print(f"Memory on {settings.device}: about {gigabytes(memory(settings, found))}{room}.")
    check(settings, found)


def check(settings: Settings, found: list[Part] | None = None) -> None:
    """Refuse a profile that this machine, or the user's access, cannot serve; asks the hub for sizes alone.

    UserError where something named is out of reach, disk or memory are small, or the model lacks the layer.
    """
    if settings.device != "cpu":
        check_device(settings.device)
    found = parts(settings) if found is None else found
    for part in found:
        if part.problem:
            without = f" Or leave `{part.setting}` out of the profile." if part.setting in OPTIONAL else ""
            raise UserError(part.problem + without)
    if (fetch := sum(part.missing for part in found)) > (free := hub.free_disk()):
        raise UserError(
            f"{settings.profile} fetches {gigabytes(fetch)}, but {gigabytes(free)} are free on the disk of "
            "the cache: free some, or set HF_HOME to a folder on a larger disk."
        )
    layers = _configuration(settings, "subject").get("num_hidden_layers")
    if layers is not None and settings.layer >= layers:
        raise UserError(
            f"Layer {settings.layer} is out of range: {settings.subject} has {layers} layers; "
            f"choose 0 to {layers - 1}."
        )
    room = free_memory(settings.device)
    if room is not None and (takes := memory(settings, found)) > room:
        raise UserError(
            f"{settings.profile} takes about {gigabytes(takes)} on {settings.device}, of which "
            f"{gigabytes(room)} are free: give a larger device, a lower batch_tokens or max_new_tokens, or a "
            "profile without `base`."
        )


def memory(settings: Settings, found: list[Part]) -> int:
    """Bytes on the device, about: models, autoencoders, the largest of reading, answering and training."""
    size = {part.setting: part.size for part in found}
    weights = sum(size.get(name, 0) for name in AUTOENCODERS)
    for name in MODELS:
        stored = str(_configuration(settings, name).get("dtype") or "bfloat16")
        weights += size.get(name, 0) // BYTES.get(stored, 2) * BYTES[settings.dtype]
    config = _configuration(settings, "subject")
    d, vocabulary = config.get("hidden_size", 0), config.get("vocab_size", 0)
    heads = config.get("num_attention_heads", 1)
    keys = config.get("num_key_value_heads", heads) * (config.get("head_dim") or d // heads)
    token = 6 * d + 3 * config.get("intermediate_size", 0) + vocabulary
    reading = settings.batch_tokens * BYTES[settings.dtype] * token + 8 * settings.context * vocabulary
    answer = settings.max_new_tokens * 2 * BYTES[settings.dtype] * config.get("num_hidden_layers", 0) * keys
    training = 4 * settings.d_sae * (6 * d + 4 * settings.train_batch)
    work = max(reading, answer if settings.problems else 0, training if settings.train_saes else 0)
    return int(weights + work)


def gigabytes(size: float) -> str:
    """A number of bytes as text, in GB, or in MB where it is small."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _configuration(settings: Settings, name: str) -> dict[str, Any]:
    """A model's ``config.json``; of what is out of reach, nothing."""
    try:
        config = read_json(hub.directory(getattr(settings, name) or "", ["config.json"]) / "config.json")
    except (UserError, FileNotFoundError, NotADirectoryError):
        return {}
    return {"dtype": config.get("torch_dtype")} | dict(config)


def check_device(device: str) -> torch.device:
    """The device of this name; UserError where this machine has none."""
    import torch

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
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0]) if torch.cuda.is_available() else None
    table = Path("/proc/meminfo")
    if not table.is_file():
        return None
    lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
