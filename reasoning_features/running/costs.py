"""What a profile will take: downloads, disk, memory of the device; refused before anything is begun.

``python -m reasoning_features.running.costs PROFILE`` prints the table. Profiles that name nothing of the hub
ask no network.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass
from typing import Any

from reasoning_features import paths
from reasoning_features.errors import UserError
from reasoning_features.files import read_json
from reasoning_features.hub_failures import free_disk, gigabytes
from reasoning_features.running.cost_parts import OPTIONAL, Part, hub_references, parts_of
from reasoning_features.settings import AUTOENCODERS, MODELS, Settings, load_settings

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Needs:
    """What a profile takes.

    Attributes:
        parts: models, autoencoders and data sets.
        disk_free: bytes free on the disk of the hub's cache.
        device: where the model runs.
        device_free: bytes free there; None where the system does not tell.
        weights: bytes of the models that are loaded at once.
        autoencoders: bytes of their autoencoders.
        working: bytes beside them, of the largest of reading, answering and training.
        width: of the subject's residual stream; 0 where its configuration is out of reach.
    """

    parts: list[Part]
    disk_free: int
    device: str
    device_free: int | None
    weights: int
    autoencoders: int
    working: int
    width: int

    @property
    def download(self) -> int:
        """Bytes to fetch."""
        return sum(part.missing for part in self.parts)

    @property
    def memory(self) -> int:
        """Bytes on the device."""
        return self.weights + self.autoencoders + self.working

    def __str__(self) -> str:
        rows = [(part.setting, part.reference, _told(part.size), _left(part)) for part in self.parts]
        rows = [("setting", "what", "size", "to fetch"), *rows, ("", "", "", gigabytes(self.download))]
        problems = dict.fromkeys(part.problem for part in self.parts if part.problem and not part.whole)
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, [*widths, 0], strict=True)) for row in rows]
        held = [f"weights {gigabytes(self.weights)}", f"autoencoders {gigabytes(self.autoencoders)}"]
        held += [f"working memory {gigabytes(self.working)}"]
        known = f"about {gigabytes(self.memory)} ({', '.join(held)})" if self.weights else "not known yet"
        free = "" if self.device_free is None else f"; {gigabytes(self.device_free)} are free"
        return "\n".join(
            [
                *(line.rstrip() for line in lines),
                *problems,
                f"Disk of the cache: {gigabytes(self.disk_free)} are free.",
                f"On {self.device}: {known}{free}.",
            ]
        )


def needs(settings: Settings) -> Needs:
    """What a profile takes; asks the hub for the sizes of what the cache does not know."""
    from reasoning_features.devices import free_memory

    try:
        device_free = free_memory(settings.device)
    except UserError:  # a plan may be made where the device is not
        device_free = None
    parts = list(parts_of(settings))
    sized = {part.setting: part for part in parts}
    configurations = {name: _configuration(sized[name]) for name in MODELS if name in sized}
    weights = sum(
        (sized[name].size or 0) // WIDTHS.get(_stored(config), 2) * WIDTHS[settings.dtype]
        for name, config in configurations.items()
    )
    distinct = {part.reference: part.size or 0 for part in parts if part.setting in AUTOENCODERS}
    autoencoders = sum(distinct.values())
    return Needs(
        parts=parts,
        disk_free=free_disk(),
        device=settings.device,
        device_free=device_free,
        weights=weights,
        autoencoders=autoencoders,
        working=_working(settings, configurations.get("subject", {})),
        width=configurations.get("subject", {}).get("hidden_size", 0),
    )


def check(settings: Settings) -> None:
    """Refuse a profile that this machine, or the user's access, cannot serve.

    A profile that names nothing of the hub and runs on the processor is refused only where sizes do not fit.

    Raises:
        UserError: something named is out of reach, disk or memory are too small, the model lacks the layer,
            or an autoencoder is for activations of another width.
    """
    _check_sizes(settings)
    if settings.device == "cpu" and not any(hub_references(settings)):
        return
    from reasoning_features.devices import check_device

    check_device(settings.device)
    found = needs(settings)
    for part in found.parts:
        if part.problem and not part.whole:
            without = f" Or leave `{part.setting}` out of the profile." if part.setting in OPTIONAL else ""
            raise UserError(part.problem + without)
    if found.download > found.disk_free:
        raise UserError(
            f"{settings.profile} fetches {gigabytes(found.download)}, but {gigabytes(found.disk_free)} are "
            "free on the disk of the cache: free some, or set HF_HOME to a folder on a larger disk."
        )
    kept = _checkpoints(settings, found)
    if settings.train_saes and kept > (free := shutil.disk_usage(paths.root()).free):
        raise UserError(
            f"{settings.profile} keeps {gigabytes(kept)} of checkpoints while it trains, but "
            f"{gigabytes(free)} are free on the disk of this folder: free some, or lower `checkpoints`."
        )
    if found.device_free is not None and found.memory > found.device_free:
        raise UserError(
            f"{settings.profile} takes about {gigabytes(found.memory)} on {found.device}, of which "
            f"{gigabytes(found.device_free)} are free: give a larger device, a lower batch_tokens or "
            "max_new_tokens, or a profile without `base`."
        )


def _check_sizes(settings: Settings) -> None:
    """Refuse a layer that the model lacks, and autoencoders of another width, where their files are here."""
    for model, owned in ((settings.subject, AUTOENCODERS[:4]), (settings.contrast, AUTOENCODERS[4:])):
        path = paths.resolve(model or "") / "config.json"
        if not path.is_file():
            continue
        config = read_json(path)
        layers, hidden = config.get("num_hidden_layers"), config.get("hidden_size")
        if layers is not None and settings.layer >= layers:
            raise UserError(
                f"Layer {settings.layer} is out of range: {model} has {layers} layers; "
                f"choose 0 to {layers - 1}."
            )
        for name in owned:
            told = paths.resolve(getattr(settings, name) or "") / "cfg.json"
            width = read_json(told).get("d_in") if told.is_file() else None
            trained_first = settings.train_saes and name == "autoencoder"
            if None not in (width, hidden) and width != hidden and not trained_first:
                raise UserError(
                    f"The autoencoder in {getattr(settings, name)} (`{name}`) is for activations of width "
                    f"{width}, but {model} has {hidden}: give one that was trained on it."
                )


def _checkpoints(settings: Settings, found: Needs) -> int:
    """Bytes of a training's checkpoints, the newest too: weights and Adam's two moments, in 32 bits."""
    return 12 * 2 * settings.d_sae * found.width * (settings.checkpoints + 1)


def _configuration(part: Part) -> dict[str, Any]:
    """A model's ``config.json``; of one that is out of reach, nothing."""
    from reasoning_features import hub

    try:
        return read_json(hub.directory(part.reference, ["config.json"]) / "config.json")
    except (UserError, FileNotFoundError):
        return {}


def _stored(config: dict[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")


def _working(settings: Settings, config: dict[str, Any]) -> int:
    """Bytes beside the weights, of the largest: a batch read, one longest answer, a training step."""
    from reasoning_features.dictionaries.autoencoder import ELEMENTS

    if not config:
        return 0
    width = WIDTHS[settings.dtype]
    d, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    keys = config.get("num_key_value_heads", heads) * (config.get("head_dim") or d // heads)
    one_token = width * (6 * d + 3 * inner + config["vocab_size"])
    losses = 2 * 4 * settings.context * config["vocab_size"]  # of a row, in float32
    reading = settings.batch_tokens * one_token + losses + 3 * 4 * ELEMENTS
    answering = settings.max_new_tokens * 2 * width * config["num_hidden_layers"] * keys
    training = 4 * settings.d_sae * (3 * 2 * d + 4 * settings.train_batch)
    return max(reading, answering if settings.problems else 0, training if settings.train_saes else 0)


def _told(size: int | None) -> str:
    return "?" if size is None else gigabytes(size)


def _left(part: Part) -> str:
    if part.whole:
        return part.problem or "here"
    return "barred" if part.problem else gigabytes(part.missing)


def main() -> None:
    """Print what a profile will take, and whether it is refused."""
    parser = argparse.ArgumentParser(prog="reasoning_features.running.costs", description=main.__doc__)
    parser.add_argument("profile", help="a profile's name or the path of its file")
    try:
        settings = load_settings(parser.parse_args().profile)
        print(needs(settings))
        check(settings)
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
