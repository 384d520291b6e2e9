"""What a profile will take in downloads and memory; refused, before anything is begun, if it does not fit."""

from pathlib import Path
from typing import Any, NamedTuple

from reasoning_features import hub, paths
from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.files import read_json
from reasoning_features.settings import AUTOENCODERS, MODELS, PINNED, TEXTS, Settings

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
OPTIONAL = frozenset({"contrast", "base", "second_subject", "second_autoencoder", "solutions_text"})


class Part(NamedTuple):
    """A thing that a profile names: its bytes, those to fetch, and why it is out of reach."""

    setting: str
    reference: str
    size: int = 0
    missing: int = 0
    problem: str = ""


def parts(settings: Settings) -> list[Part]:
    """Everything that a profile reads, each once, with the sizes that the machine or the hub tell."""
    found: dict[tuple[str, ...], Part] = {}
    for setting in (*PINNED, *TEXTS):
        for each in () if setting in settings.unread else settings.named(setting):
            named = (each,) if isinstance(each, str) else (each.dataset, each.name, each.split)
            if named not in found:
                found[named] = _part(setting, *named)
    return list(found.values())


def _part(setting: str, reference: str, *data: str) -> Part:
    """A part, with ``data`` a data set's configuration and split."""
    kind: hub.Kind = "dataset" if data else "model"
    if hub.is_local(reference):
        path = paths.resolve(reference)
        files = [path] if path.is_file() else path.rglob("*.safetensors" if kind == "model" else "*")
        return Part(setting, reference, sum(file.stat().st_size for file in files if file.is_file()))
    try:
        patterns = hub.dataset_files(reference, *data) if data else None
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
    """UserError where what a profile names is out of reach or too large, or the model lacks the layer."""
    if settings.device != "cpu":
        check_device(settings.device)
    found = parts(settings) if found is None else found
    for part in found:
        if part.problem:
            without = f" Or leave `{part.setting}` out of the profile." if part.setting in OPTIONAL else ""
            raise UserError(part.problem + without)
    if (fetch := sum(part.missing for part in found)) > (free := hub.free_disk()):
        has = f"{gigabytes(free)} are free on the disk of the cache: free some, or set HF_HOME to another"
        raise UserError(f"{settings.profile} fetches {gigabytes(fetch)}, but {has}.")
    layers = configuration(settings.subject).get("num_hidden_layers")
    check_layer(settings.layer, layers or settings.layer + 1, settings.subject)
    room = free_memory(settings.device)
    if room is not None and (takes := memory(settings, found)) > room:
        asks = f"{settings.profile} takes about {gigabytes(takes)} on {settings.device}"
        advice = "give a larger device, a lower batch_tokens or max_new_tokens"
        raise UserError(f"{asks}, of which {gigabytes(room)} are free: {advice}.")


def memory(settings: Settings, found: list[Part]) -> int:
    """Bytes on the device, about: models, autoencoders, the largest of reading, answering and training."""
    size = {part.setting: part.size for part in found}
    weights = sum(size.get(name, 0) for name in AUTOENCODERS)
    for name in filter(settings.named, MODELS):
        stored = str(configuration(getattr(settings, name)).get("dtype") or "bfloat16")
        weights += size.get(name, 0) // BYTES.get(stored, 2) * BYTES[settings.dtype]
    config = configuration(settings.subject)
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


def configuration(reference: str) -> dict[str, Any]:
    """Sizes and ``dtype`` in a model's ``config.json``, if in reach; UserError: it is not whole."""
    try:
        folder = hub.directory(reference, ["config.json"])
        config = dict(read_json(folder / "config.json")) if folder.is_dir() else {}
    except UserError:
        return {}
    except FileNotFoundError as error:
        raise MissingArtefact(f"There is no config.json in {reference}: name a whole model.") from error
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"config.json in {reference} is no JSON object: restore it.") from error
    sizes = {key: value for key, value in config.items() if isinstance(value, int) and value > 0}
    return sizes | {"dtype": config.get("dtype", config.get("torch_dtype"))}


def check_layer(layer: int, n: int, name: str) -> None:
    """UserError where a model with ``n`` layers has no such layer."""
    if not 0 <= layer < n:
        raise UserError(f"Layer {layer} is out of range: {name} has {n} layers; choose 0 to {n - 1}.")


def check_device(device: str) -> None:
    """UserError where this machine has no device of this name."""
    import torch

    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"The device {device!r} is unknown: set DEVICE=cpu or DEVICE=cuda.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        lacks = "is not there (torch finds no CUDA)"
        raise UserError(f"The device {device} {lacks}: set DEVICE=cpu, or run where a GPU is.")


def free_memory(device: str) -> int | None:
    """Bytes that are free on a device that is there, or None where the system does not tell."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0] if torch.cuda.is_available() else None
    table = Path("/proc/meminfo")
    lines = table.read_text().splitlines() if table.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
