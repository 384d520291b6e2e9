"""The subject: a language model, its tokenizer and the place, or site, where it is read.

That is the residual stream after a block (``resid_post``), or what its MLP adds to the stream (``mlp_out``).
Bulk reading uses the plain Hugging Face model, stopped right after the last block that is needed.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from reasoning_features import hub, paths
from reasoning_features.errors import MissingArtefact, UserError, check_finite
from reasoning_features.files import directory_digest, read_json, verify_shipped
from reasoning_features.models.sampling import edited
from reasoning_features.runs.preflight import check_device, check_layer, configuration

Site = Literal["resid_post", "mlp_out"]


class _Enough(Exception):
    """Raised by a hook to leave the forward pass once the last block that is needed has run."""


class _Skipped(torch.nn.Module):
    """Stands where a block was, so that those after it keep their number: it gives what it gets."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


@dataclass(frozen=True)
class Prefix:
    """What is kept of one sequence, so that versions of one of its tokens can be run."""

    stream: Tensor  # [t, d] residual stream at the hook point
    keys_values: tuple[tuple[Tensor, Tensor], ...]  # [1, heads, t, d_head] of every block


@dataclass(frozen=True)
class Subject:
    """A causal language model, in evaluation mode and without gradients, read at one block."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layer: int  # the block of the hook point, from 0
    name: str  # as it was asked for: a directory, or `owner/name` of the hub
    revision: str  # what pins the weights: the digest of a directory's files, or the hub's commit
    directory: str  # that the model was loaded from
    site: Site = "resid_post"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as a reference: where it is read again the model is loaded there."""
        reference = self.name if hub.is_local(self.name) else f"{self.name}@{self.revision}"
        dtype = str(self.model.dtype).removeprefix("torch.")
        return _reloaded, (reference, self.layer, str(self.device), dtype, self.site)

    @property
    def short_name(self) -> str:
        return short_name(self.name)

    @property
    def ends(self) -> tuple[int, ...]:
        """What ends an answer: the tokenizer's token and the generation configuration's; UserError: none."""
        configured: Any = self.model.generation_config.eos_token_id
        known = [*(configured if isinstance(configured, list) else [configured]), self.tokenizer.eos_token_id]
        ends = tuple(sorted({token for token in known if token is not None}))
        if not ends:
            raise UserError(f"No token ends {self.name}'s answers: name one in its generation configuration.")
        return ends

    @property
    def special_ids(self) -> list[int]:
        """All tokens that are marked special: of Llama 3.1's headers the tokenizer's own list tells none."""
        marked = (i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special)
        return sorted({*self.tokenizer.all_special_ids, *marked})

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def n_layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.model.config.hidden_size)

    @property
    def hook_name(self) -> str:
        """The hook point in TransformerLens' names, as an SAE's metadata records it."""
        return f"blocks.{self.layer}.hook_{self.site}"

    @property
    def hooked_block(self) -> torch.nn.Module:
        """The module whose output is the hook point: the block, or its MLP."""
        block = self._blocks[self.layer]
        return block.mlp if self.site == "mlp_out" else block

    @property
    def _blocks(self) -> Any:
        return self.model.base_model.layers

    @torch.no_grad()
    def embeddings(self, tokens: Tensor) -> Tensor:
        """Token embeddings ``[b, t, d]``, before the first block: what the token alone says."""
        return self.model.get_input_embeddings()(tokens.to(self.device))

    def residual(self, tokens: Tensor) -> Tensor:
        """Activations ``[b, t, d]`` at the hook point for ids ``[b, t]``, padded on the right if need be."""
        return self._read(tokens, {self.layer: self.hooked_block})[self.layer]

    def residuals(self, tokens: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Residual stream ``[b, t, d]`` after each of ``layers``, whatever the site.

        Hugging Face's ``hidden_states[layer + 1]``; after the last block, what comes before the final norm.
        UserError beyond the model's layers.
        """
        for layer in layers:
            check_layer(layer, self.n_layers, self.name)
        return self._read(tokens, {layer: self._blocks[layer] for layer in layers})

    @torch.no_grad()
    def _read(self, tokens: Tensor, modules: dict[int, torch.nn.Module]) -> dict[int, Tensor]:
        """Outputs of some modules by layer; nothing after the last of them runs."""
        read: dict[int, Tensor] = {}

        def keep(layer: int, module: Any, inputs: Any, output: Any) -> None:
            read[layer] = output[0] if isinstance(output, tuple) else output  # a tuple in some models
            if layer == max(modules):
                raise _Enough

        with contextlib.ExitStack() as stack:
            for layer, module in modules.items():
                stack.callback(module.register_forward_hook(functools.partial(keep, layer)).remove)
            with contextlib.suppress(_Enough):
                self.model.base_model(input_ids=tokens.to(self.device), use_cache=False)
        return {layer: self._finite(values, f"activation at layer {layer}") for layer, values in read.items()}

    def _finite(self, values: Tensor, what: str) -> Tensor:
        """The values; UserError where one is not finite."""
        return check_finite(values, f"The {what} of a token by {self.name} in {self.model.dtype}")

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """Next-token logits ``[b, t, vocabulary]``."""
        return self._finite(self.model(input_ids=tokens.to(self.device), use_cache=False).logits, "logit")

    def logits_with(self, tokens: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
        """Next-token logits ``[b, t, vocabulary]`` of token ids ``[b, t]`` as in :meth:`edited`."""
        with self.edited(edit):
            return self.logits(tokens)

    def edited(self, edit: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
        """Within this context every forward pass goes on from ``edit(activations)`` at the hook point."""
        return edited(self.hooked_block, edit)

    @torch.no_grad()
    def logits_from(self, stream: Tensor, layer: int, places: Tensor) -> Tensor:
        """Next-token logits ``[b, k, vocabulary]`` at ``places`` ``[b, k]``, from a stream ``[b, t, d]``.

        The stream, perhaps padded on the right, is that after block ``layer``. UserError beyond the model's
        layers, or where the subject is not read at the residual stream.
        """
        self._needs_the_stream()
        check_layer(layer, self.n_layers, self.name)
        given = {"inputs_embeds": stream.to(self.device, self.model.dtype)}
        return self._logits_at(self.blocks_after(layer), given, places)

    @torch.no_grad()
    def logits_at(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Next-token logits ``[b, k, vocabulary]`` of token ids ``[b, t]`` at ``places`` ``[b, k]`` alone."""
        return self._logits_at(self.model, {"input_ids": tokens.to(self.device)}, places)

    def _logits_at(self, model: PreTrainedModel, given: dict[str, Tensor], places: Tensor) -> Tensor:
        """Of a model's last stream the unembedding reads some places of each row, and no others."""
        at, rows = places.to(self.device), torch.arange(len(places), device=self.device)[:, None]
        head: Any = model.get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda _, read: (read[0][rows, at],))
        try:
            return self._finite(model(**given, use_cache=False).logits, "logit")
        finally:
            handle.remove()

    @torch.no_grad()
    def prefix(self, tokens: Tensor) -> Prefix:
        """Runs one sequence ``[t]`` and keeps what :meth:`logits_of_versions` needs; errors as above."""
        self._needs_the_stream()
        ids, cache, read = tokens[None].to(self.device), DynamicCache(), list[Tensor]()

        def kept(stream: Tensor) -> Tensor:
            read.append(stream)
            return stream

        with self.edited(kept):
            self.model(input_ids=ids, past_key_values=cache, use_cache=True)
        return Prefix(read[0][0], tuple((layer[0], layer[1]) for layer in cache))

    @torch.no_grad()
    def logits_of_versions(self, prefix: Prefix, place: int, versions: Tensor, width: int = 128) -> Tensor:
        """Next-token logits ``[m, vocabulary]`` at a place for many ``versions`` ``[m, d]`` of its stream.

        The versions stand side by side, ``width`` in a row, as further tokens after the cached ones, each at
        the position ``place`` and seeing those before it and itself alone.
        """
        given, rows = versions.to(self.device, self.model.dtype), -(-len(versions) // width)
        padded = torch.nn.functional.pad(given, (0, 0, 0, rows * width - len(given)))
        known = prefix.keys_values
        seen = [tuple(part[:, :, :place].expand(rows, -1, -1, -1) for part in layer) for layer in known]
        barred = torch.full((width, width), torch.finfo(padded.dtype).min, device=padded.device)
        mask = torch.cat([barred.new_zeros(width, place), barred.fill_diagonal_(0)], dim=1)
        places = torch.full((rows, width), place, device=padded.device)
        options: dict[str, Any] = {"attention_mask": mask.expand(rows, 1, -1, -1), "position_ids": places}
        options |= {"inputs_embeds": padded.view(rows, width, -1), "past_key_values": DynamicCache(seen)}
        logits = self.blocks_after(self.layer)(**options, use_cache=True).logits
        return self._finite(logits.flatten(0, 1)[: len(given)], "logit")

    def read_once(
        self,
        tokens: Tensor,
        cache: DynamicCache,
        masks: dict[str, Tensor],
        change: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Next-token logits ``[b, vocabulary]`` after prompts ``[b, t]``, of which many are the same.

        Up to the hook point each different prompt is read once; the blocks after it go on from
        ``change(stream)``. Fills the empty ``cache``; ``masks`` are the model's. A :data:`sampling.Reader`.
        UserError where the subject is not read at the residual stream.
        """
        self._needs_the_stream()
        shown = torch.cat([tokens, masks["attention_mask"]], dim=1) if masks else tokens
        _, of = torch.unique(shown, dim=0, return_inverse=True)
        first = torch.full((int(of.max()) + 1,), len(of), device=of.device)
        first.scatter_reduce_(0, of, torch.arange(len(of), device=of.device), "amin")
        below: Any = DynamicCache(config=self.model.config)
        read: list[Tensor] = []

        def enough(stream: Tensor) -> Tensor:
            read.append(stream)
            raise _Enough

        once = {name: mask[first] for name, mask in masks.items()}
        with contextlib.suppress(_Enough), self.edited(enough):
            self.model.base_model(input_ids=tokens[first], past_key_values=below, use_cache=True, **once)
        options: dict[str, Any] = {"inputs_embeds": change(read[0][of]), "past_key_values": cache, **masks}
        ran = self.blocks_after(self.layer)(**options, use_cache=True, logits_to_keep=1)
        for i, layer in enumerate(below.layers[: self.layer + 1]):
            cache.update(layer.keys[of], layer.values[of], i)
        return ran.logits[:, -1]

    def gradient(self, tokens: Tensor, target: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Stream and ∂ target / ∂ stream at the hook point, both ``[b, t, d]``, for token ids ``[b, t]``.

        ``target`` takes the next-token logits ``[b, t, vocabulary]`` and gives one number.
        """
        leaves: list[Tensor] = []

        def leaf(stream: Tensor) -> Tensor:
            leaves.append(stream.detach().requires_grad_(True))
            return leaves[0]

        with self.edited(leaf), torch.enable_grad():
            value = target(self.model(input_ids=tokens.to(self.device), use_cache=False).logits)
        return leaves[0].detach(), self._finite(torch.autograd.grad(value, leaves[0])[0], "effect's slope")

    def bridge(self) -> Any:
        """The same model as a TransformerLens ``TransformerBridge``: slower in bulk."""
        from transformer_lens.model_bridge import TransformerBridge

        options: dict[str, Any] = {"dtype": self.model.dtype, "device": str(self.device)}
        return TransformerBridge.boot_transformers(self.directory, **options)

    def blocks_after(self, layer: int) -> PreTrainedModel:
        """The model without its blocks up to ``layer``: takes a stream as embeddings, shares weights."""
        tail, base = copy.copy(self.model), copy.copy(self.model.base_model)
        tail._modules, base._modules = dict(self.model._modules), dict(self.model.base_model._modules)
        kept = [_Skipped() if i <= layer else block for i, block in enumerate(self._blocks)]
        base.layers = torch.nn.ModuleList(kept)
        setattr(tail, tail.base_model_prefix, base)
        return tail

    def _needs_the_stream(self) -> None:
        if self.site != "resid_post":
            told = f"The model cannot go on from the output of an MLP alone (site {self.site})"
            raise UserError(f"{told}: set site=resid_post for this measurement.")


def load_subject(
    model: str, layer: int, *, device: str = "cpu", dtype: str = "float32", site: Site = "resid_post"
) -> Subject:
    """Load a model and its tokenizer, to be read at block ``layer`` (from 0).

    ``model`` is a directory (absolute, or from the repository's root), pinned by its checksums, or
    ``owner/name[@revision]`` of the hub, pinned by its commit. MissingArtefact: it is not in reach.
    CorruptArtefact: a checksum does not match. UserError: no such layer or device, or files that do not fit.
    """
    check_device(device)
    if hub.is_local(model):
        directory, name = paths.resolve(model), model
        if not directory.is_dir():
            makes = "`make organism` makes the organism's, `make smollm2` SmolLM2"
            raise MissingArtefact(f"There is no model in {model}: {makes}.")
        verify_shipped(directory)
        revision = directory_digest(directory)
    else:
        directory, name = hub.local_copy(model), hub.parse(model).repo
        revision = hub.known_sha(model) or ""
    check_layer(layer, configuration(model).get("num_hidden_layers", layer + 1), name)
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"{name} has no weights as safetensors: save it again so, or give a model that has.")
    loader: Any = transformers.AutoModelForCausalLM  # whose types do not know that it gives two things
    options: dict[str, Any] = {} if device == "cpu" else {"device_map": {"": device}}
    options |= {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # told below, by name
    try:
        if (ends := directory / "generation_config.json").is_file():
            read_json(ends)  # transformers passes over a damaged one, and answers then run on
        tokenizer = load_tokenizer(directory)
        network, found = loader.from_pretrained(directory, **options)
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split()).split('. ')[0][:200]}"
        raise UserError(f"{name} cannot be loaded ({why}): restore its files, or give another.") from error
    blocks = getattr(network.base_model, "layers", [])
    if len(blocks) <= layer or (site == "mlp_out" and not hasattr(blocks[layer], "mlp")):
        raise UserError(f"{name} lacks `model.layers`, or their `mlp`: give a decoder such as Llama or Qwen.")
    beyond = f"{network.base_model_prefix}.layers.{len(blocks)}."
    wrong = found["missing_keys"] | {key for key, *_ in found["mismatched_keys"]}
    if wrong := sorted(wrong | {key for key in found["unexpected_keys"] if key.startswith(beyond)}):
        raise UserError(f"{name} has {len(wrong)} weights unlike config.json ({wrong[0]}): restore both.")
    network.eval().requires_grad_(False)
    return Subject(network, tokenizer, layer, name, revision, str(directory), site)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory as its file says, whatever class its configuration names: for R1's, early
    versions of transformers 5 put Llama 2's way with spaces in place of the file's.
    """
    whole = (directory / "tokenizer.json").is_file()
    return (transformers.PreTrainedTokenizerFast if whole else AutoTokenizer).from_pretrained(directory)


@functools.lru_cache(1)
def _reloaded(reference: str, layer: int, device: str, dtype: str, site: Site) -> Subject:
    """A subject that was pickled; a process keeps the last one."""
    return load_subject(reference, layer, device=device, dtype=dtype, site=site)


def short_name(reference: str) -> str:
    """The last part of a model's name, without revision: what tables call it."""
    return Path(reference).name if hub.is_local(reference) else hub.parse(reference).repo.split("/")[1]
