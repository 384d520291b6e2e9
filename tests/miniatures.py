"""Models, autoencoders and data sets in the shapes of the published ones, a few hundred kilobytes in all.

Names of files, columns, special tokens and keys of configurations are those of the real repositories (the
reasoning model distilled from R1 into Llama, its Qwen sister, the paper's autoencoder as SAELens 5.5.2 left
it, one in the format of EleutherAI's sparsify, and the data sets). No two dimensions are equal, and there are
more layers than colours and more features than any list in the code is long.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from reasoning_features.organism import language
from reasoning_features.organism.language import reasoning_documents
from reasoning_features.organism.problems import draw_family, draw_problem

LLAMA, LLAMA_BASE = "mini/R1-Distill-Llama", "mini/Llama-Base"
LLAMA_SAE = "mini/r1-distill-llama-lmsys-openthoughts"
QWEN, QWEN_BASE, QWEN_SAE = "mini/R1-Distill-Qwen", "mini/Qwen-Base", "mini/sae-R1-Distill-Qwen-280"
THOUGHTS, THOUGHTS_ALL = "mini/OpenThoughts-10k-DeepSeek-R1", "mini/OpenThoughts-114k"
LMSYS, TOKENIZED, SLIM = "mini/lmsys-chat-1m", "mini/lmsys-openthoughts-tokenized", "mini/SlimPajama-6B"
MATH, AIME, GPQA = "mini/MATH-500", "mini/aime_2024", "mini/gpqa"

LAYERS, LAYER = 10, 6  # the depth of the paper's hook, nearly
WIDTH, HEADS, KEY_HEADS, MLP_WIDTH = 56, 4, 2, 100
VOCABULARY, SPARE = 600, 5  # of the embedding's rows some are no tokens', as in Qwen
FEATURES, QWEN_FEATURES, QWEN_K = 616, 280, 17
DEAD = 8  # the first features of the Llama's autoencoder
TEXTS, ROW, CONTEXT = 360, 128, 120
PART = "data/train-00000-of-00001.parquet"
HOOK = f"blocks.{LAYER}.hook_resid_post"
MLP = f"layers.{LAYER}.mlp"
DOMAINS = (
    *("code", "math", "puzzle", "biology", "chemistry", "physics"),
    *("history", "law", "language", "music", "medicine"),
)
PROBLEMS = {MATH: 24, AIME: 6, GPQA: 9}  # of each benchmark

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT, THINK, END_THINK = "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"
LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SYSTEM = "\nYour role as an assistant involves thoroughly exploring questions before answering them.\n"
TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system_prompt='') %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}"
    "{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<｜Assistant｜>OPENING'}}{% endif %}"
)
"""R1's template without its tools; since February 2025 the opening is ``<think>`` and a line break."""


def template(opens_thinking: bool = True) -> str:
    """The chat template as it is today, or as at first, when it left the model to open its thinking."""
    return TEMPLATE.replace("OPENING", "<think>\\n" if opens_thinking else "")


def build(root: Path) -> Path:
    """Everything under ``root``, as :mod:`local_hub` serves it."""
    models_, data = root / "models", root / "datasets"
    rows = thoughts()
    texts = [row["text"] for row in rows] + [render(turns) for turns in conversations()]
    for name, base, kind in ((LLAMA, LLAMA_BASE, "llama"), (QWEN, QWEN_BASE, "qwen")):
        make_tokenizer(models_ / name, texts, reasoning=True)
        make_tokenizer(models_ / base, texts, reasoning=False)
        make_model(models_ / name, kind, seed=0)
        make_model(models_ / base, kind, seed=1)
    make_datasets(data, rows)
    make_sae(models_ / LLAMA_SAE / HOOK, models_ / LLAMA, texts)
    make_sparsify_sae(models_ / QWEN_SAE, models_ / QWEN, texts)
    return root


def make_tokenizer(directory: Path, texts: list[str], reasoning: bool) -> None:
    """A byte-level BPE with R1's special tokens, under R1's (misleading) class name LlamaTokenizerFast."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(LLAMA_3_WORDS), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    plain = [re.sub(r"<[^<>]*>", "\n", text) for text in texts]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(plain, trainer)
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in (BOS, EOS)])
    marks = (USER, ASSISTANT, THINK, END_THINK, PAD)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])
    bos = [(BOS, tokenizer.token_to_id(BOS))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=bos)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    marked: dict[str, Any] = {"__type": "AddedToken", "normalized": True}
    marked |= dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    named = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS}
    config: dict[str, Any] = {name: marked | {"content": mark} for name, mark in named.items()}
    config |= {"add_bos_token": True, "tokenizer_class": "LlamaTokenizerFast"}
    config |= {"chat_template": template()} if reasoning else {}
    _write_json(directory / "tokenizer_config.json", config)


def make_model(directory: Path, kind: str, seed: int) -> None:
    """Random weights in bfloat16 in two shards beside a configuration with the published keys."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    ends = {"bos_token_id": bos, "eos_token_id": eos}
    shape: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size() + SPARE, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS, "intermediate_size": MLP_WIDTH,
        "max_position_embeddings": 4096, "tie_word_embeddings": False, "initializer_range": 0.15,
    }  # fmt: skip
    torch.manual_seed(seed)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000}
    if kind == "llama":
        rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "original_max_position_embeddings": 512}
        rope |= {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    kinds: Any = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen": (Qwen2ForCausalLM, Qwen2Config)}
    of_class, config_class = kinds[kind]
    model = of_class(config_class(**shape, **ends, rope_parameters=rope)).to(torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="250KB")
    config = json.loads((directory / "config.json").read_text())
    rope = config.pop("rope_parameters")
    old = {"torch_dtype": config.pop("dtype"), "rope_theta": rope.pop("rope_theta")}
    old["rope_scaling"] = rope if kind == "llama" else None
    _write_json(directory / "config.json", config | old)
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.95} | ends
    _write_json(directory / "generation_config.json", sampling)
    (directory / "original").mkdir(exist_ok=True)
    for unread in ("README.md", "original/consolidated.00.pth", "pytorch_model.bin"):
        (directory / unread).write_text("not to be fetched")


@torch.no_grad()
def activations(directory: Path, texts: list[str], site: str) -> torch.Tensor:
    """Activations ``[n, d]`` of the hooked block in float32: its output, or its MLP's."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    block = model.model.layers[LAYER]
    read: list[torch.Tensor] = []

    def hook(module: Any, inputs: Any, output: Any) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        read.append(stream.reshape(-1, WIDTH))

    (block.mlp if site == "mlp_out" else block).register_forward_hook(hook)
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids[:ROW]
        model(input_ids=torch.tensor([ids]), use_cache=False)
    return torch.cat(read)


def dictionary(points: torch.Tensor, features: int, density: float, seed: int) -> dict[str, torch.Tensor]:
    """Features along activations, each active on a share ``density``; the decoder by least squares."""
    generator = torch.Generator().manual_seed(seed)
    mean = points.mean(0)
    centred = points - mean
    chosen = centred[torch.randperm(len(points), generator=generator)[:features]]
    encoder = torch.nn.functional.normalize(chosen, dim=1)
    threshold = (centred @ encoder.T).quantile(1 - density, dim=0)
    active = (centred @ encoder.T - threshold).relu()
    gram = active.T @ active + 1e-2 * len(points) * torch.eye(features)
    decoder = torch.linalg.solve(gram, active.T @ centred)
    return {"W_enc": encoder.T, "b_enc": -threshold, "W_dec": decoder, "b_dec": mean}


def make_sae(directory: Path, model: Path, texts: list[str]) -> None:
    """The autoencoder of the hooked block as SAELens 5.5.2 leaves it when its training ends. The scaling is
    folded into the weights, but ``cfg.json`` goes on to tell the training's normalisation.
    """
    points = activations(model, texts[::4], "resid_post")
    found = dictionary(points, FEATURES, 0.04, seed=0)
    # of the encoder's input nothing is subtracted: the mean goes into its bias
    found["b_enc"] = found["b_enc"] - found["b_dec"] @ found["W_enc"]
    found["b_enc"][:DEAD] = -1e3
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in found.items()}
    save_file(weights, directory / "sae_weights.safetensors")
    fired = (points @ found["W_enc"] + found["b_enc"] > 0).float().mean(0)
    save_file({"sparsity": torch.log10(fired + 1e-10)}, directory / "sparsity.safetensors")
    # SAELens 5.5.2's LanguageModelSAERunnerConfig with the paper's values, less most of the training's keys
    told: dict[str, Any] = {
        "model_name": LLAMA, "model_class_name": "HookedTransformer", "hook_name": HOOK,
        "hook_layer": LAYER, "hook_head_index": None, "dataset_path": TOKENIZED, "context_size": ROW,
        "architecture": "standard", "d_in": WIDTH, "d_sae": FEATURES, "activation_fn": "relu",
        "activation_fn_kwargs": {}, "apply_b_dec_to_input": False,
        "normalize_activations": "expected_average_only_in",
        "seqpos_slice": [None], "prepend_bos": False, "device": "cuda", "dtype": "float32",
        "model_kwargs": {}, "model_from_pretrained_kwargs": {"dtype": "bfloat16"}, "lr": 5e-05,
        "sae_lens_version": "5.5.2", "sae_lens_training_version": "5.5.2", "seed": 42,
    }  # fmt: skip
    _write_json(directory / "cfg.json", told)


def make_sparsify_sae(root: Path, model: Path, texts: list[str]) -> None:
    """A TopK autoencoder of the block's MLP in sparsify's format: encodes x − b_dec, unit decoder rows."""
    found = dictionary(activations(model, texts[::4], "mlp_out"), QWEN_FEATURES, 0.06, seed=0)
    norms = found["W_dec"].norm(dim=1, keepdim=True)
    encoder = found["W_enc"].T * norms
    directory = root / MLP
    directory.mkdir(parents=True, exist_ok=True)
    weights = {"encoder.weight": encoder, "encoder.bias": found["b_enc"] * norms[:, 0]}
    weights |= {"W_dec": found["W_dec"] / norms, "b_dec": found["b_dec"]}
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, directory / "sae.safetensors")
    own = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "k": QWEN_K}
    own |= {"num_latents": QWEN_FEATURES, "multi_topk": False, "skip_connection": False, "transcode": False}
    _write_json(directory / "cfg.json", own | {"d_in": WIDTH})
    _write_json(root / "config.json", {"sae": own, "hookpoints": [MLP], "model": QWEN, "ctx_len": 2048})


def thoughts(n: int = TEXTS) -> list[dict[str, Any]]:
    """Rows of OpenThoughts: problems with thinking and a solution, and all of it as the paper's text."""
    rows = []
    for i, document in enumerate(reasoning_documents(1.0, n, seed=31)):
        problem = document.problem
        assert problem is not None
        thinking = document.text.split(THINK)[1].split(END_THINK)[0].strip()
        told = " ".join(_prose(i, 3))
        solution = f"{told} The answer is \\boxed{{{problem.answer}}}."
        user = f"Return your final response within \\boxed{{}}. {problem.question}"
        text = f"{SYSTEM}{USER}{user}{ASSISTANT}{THINK}\n{thinking}\n{END_THINK}\n{solution}"
        rows.append(
            {"problem": problem.question, "deepseek_reasoning": thinking, "deepseek_solution": solution,
             "ground_truth_solution": " ".join(_prose(10_000 + i, 4)), "domain": DOMAINS[i % len(DOMAINS)],
             "source": "miniature", "test_cases": None, "starter_code": None, "text": text}
        )  # fmt: skip
    return rows


def conversations(n: int = TEXTS) -> list[list[dict[str, str]]]:
    """Conversations of one or two exchanges, without thinking."""
    made = []
    for i in range(n):
        turns = [("user", 1), ("assistant", 4)] * (1 + i % 2)
        said = iter(_prose(20_000 + i, 10))
        made.append([{"content": " ".join(next(said) for _ in range(k)), "role": role} for role, k in turns])
    return made


def render(turns: list[dict[str, str]]) -> str:
    """A conversation as the paper's code renders it."""
    around = {"user": (USER, ""), "assistant": (ASSISTANT, EOS)}
    text = "".join(turn["content"].join(around[turn["role"]]) for turn in turns)
    return text.removesuffix(EOS)  # nothing ends the last turn


def make_datasets(root: Path, rows: list[dict[str, Any]]) -> None:
    """Every data set, with the published columns and configurations."""
    _parquet(root / THOUGHTS / PART, rows)
    own = [{column: row[column] for column in row if column != "text"} for row in rows]
    _parquet(root / THOUGHTS_ALL / "metadata" / "train-00000-of-00001.parquet", own)
    plain = [{"system": SYSTEM, "conversations": [{"from": "user", "value": r["problem"]}]} for r in rows]
    _parquet(root / THOUGHTS_ALL / PART, plain)
    _card(root / THOUGHTS_ALL, {"default": "data/train-*", "metadata": "metadata/train-*"})
    talks = [
        {"conversation_id": f"{i:032x}", "model": "miniature", "conversation": turns, "turn": len(turns) // 2,
         "language": "English", "redacted": False}
        for i, turns in enumerate(conversations())
    ]  # fmt: skip
    _parquet(root / LMSYS / PART, talks)
    pages = [{"text": "\n".join(_prose(30_000 + i, 14)), "meta": {"set": "C4"}} for i in range(TEXTS)]
    _parquet(root / SLIM / PART, pages)
    tokenizer = Tokenizer.from_file(str(root.parent / "models" / LLAMA / "tokenizer.json"))
    eos = tokenizer.token_to_id(EOS)
    texts = [row["text"] for row in rows] + [render(turns) for turns in conversations()]
    order = np.random.default_rng(0).permutation(len(texts))
    stream = [i for j in order for i in [*tokenizer.encode(texts[j], add_special_tokens=False).ids, eos]]
    packed = [{"tokens": stream[i : i + ROW]} for i in range(0, len(stream) - ROW + 1, ROW)]
    _parquet(root / TOKENIZED / PART, packed)
    _benchmarks(root)


def _benchmarks(root: Path) -> None:
    def drawn(n: int, seed: int) -> Iterator[tuple[int, str, str]]:
        for i in range(n):
            rng = np.random.default_rng([seed, i])
            problem = draw_problem(rng, "evaluation", draw_family(rng))
            yield i, problem.question, problem.answer

    math = [
        {"problem": question, "solution": f"It is $\\boxed{{{answer}}}$.", "answer": answer,
         "subject": "Number Theory", "level": 1 + i % 5, "unique_id": f"test/number_theory/{i}.json"}
        for i, question, answer in drawn(PROBLEMS[MATH], 41)
    ]  # fmt: skip
    (root / MATH).mkdir(parents=True, exist_ok=True)
    pd.DataFrame(math).to_json(root / MATH / "test.jsonl", orient="records", lines=True)
    posed = [
        {"id": 60 + i, "problem": question, "solution": f"It is {answer}.", "answer": answer, "year": "2024"}
        for i, question, answer in drawn(PROBLEMS[AIME], 42)
    ]
    _parquet(root / AIME / PART, posed)
    gpqa = [
        {"Record ID": f"rec{i}", "Question": question, "Correct Answer": f"{answer}\n",
         **{f"Incorrect Answer {k}": f"{answer}{k}" for k in (1, 2, 3)},
         "High-level domain": ("Physics", "Chemistry", "Biology")[i % 3]}
        for i, question, answer in drawn(PROBLEMS[GPQA], 43)
    ]  # fmt: skip
    (root / GPQA).mkdir(parents=True, exist_ok=True)
    pd.DataFrame(gpqa).to_csv(root / GPQA / "gpqa_diamond.csv", index=False)
    pd.DataFrame(gpqa[:3]).to_csv(root / GPQA / "gpqa_main.csv", index=False)
    _card(root / GPQA, {"gpqa_main": "gpqa_main.csv", "gpqa_diamond": "gpqa_diamond.csv"}, split="train")


def _prose(seed: int, sentences: int) -> list[str]:
    rng = np.random.default_rng([seed, 9])
    return [language.prose_sentence(rng) for _ in range(sentences)]


def _card(directory: Path, configurations: dict[str, str], split: str = "train") -> None:
    lines = ["---", "configs:"]
    for name, files in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:", f"  - split: {split}", f"    path: {files}"]
    (directory / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(path, index=False)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
