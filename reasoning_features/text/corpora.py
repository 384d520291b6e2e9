"""Corpora by kind: the organism's documents, or texts of datasets and files, as one :class:`Corpus`.

Of a text one piece is taken, ``context`` tokens from a place drawn by the seed: all depths of a long trace
occur, and intervals over documents hold. It begins with BOS where the tokenizer has one; its first token,
which becomes the model's attention sink (2309.17453), is marked special.

A row of a dataset belongs to one split for good: what its ``split_column`` says, or else drawn from the
dataset's name and the row's number alone. So texts on which features were chosen never evaluate them.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from reasoning_features import paths
from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.files import read_json
from reasoning_features.organism import language
from reasoning_features.organism.language import END_THINK, STEP_LABELS, THINK
from reasoning_features.organism.problems import Split
from reasoning_features.organism.training import encode_documents
from reasoning_features.settings import Settings, TextSource
from reasoning_features.text.corpus import Corpus, starts_of, token_bytes
from reasoning_features.text.rows import open_rows, tell_left_out
from reasoning_features.text.words import Mask, WordIndex, occurrence_table

# kinds of corpora beside the organism's documents: the same without their labels, texts of the settings
UNLABELLED, TEXT = "organism-text", "text"
# Added to the settings' seed: documents that are analysed come from other streams than those of training.
SEED_OF_CORPORA = 7_000_000
# Fractions of a dataset's rows.
FRACTIONS: dict[Split, float] = {"selection": 0.45, "evaluation": 0.45, "training": 0.10}
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"  # R1's marks of turns, as the released script puts them
_ENDINGS = (".parquet", ".jsonl", ".json", ".csv")  # of files, which their names go without
_MARK = re.compile(f"{THINK}|{END_THINK}")
_TEXTS_AT_ONCE = 64  # are tokenised together


def reasoning_corpus(
    settings: Settings, tokenizer: Any, split: Split, model: str | None = None, documents: int | None = None
) -> Corpus:
    """The reasoning corpus: thinking traces, domains being problem families; of texts, a piece of each.

    There are ``documents`` of them (by default as the settings say), fewer where there are fewer texts. No
    problem is in two splits. The organism's variants phrase the same traces in other words: those of
    ``model`` are given, by default the subject's. UserError: no source of texts.
    """
    n = settings.reasoning_documents if documents is None else documents
    if (source := _source(settings, "reasoning_text")) is not None:
        return text_corpus(source, f"reasoning ({split})", tokenizer, split, n, settings)
    path = paths.root() / (model or settings.subject) / "training.json"
    if not path.is_file():
        missing = paths.relative(path)
        raise MissingArtefact(f"There is no {missing}: `make organism` makes the shipped models.")
    card = read_json(path)
    kappa, mixture = float(card.get("kappa", 1.0)), card.get("mixture", "main")  # the base reads κ = 1
    made = _traces(kappa, n, SEED_OF_CORPORA + settings.seed, split, mixture)
    domains = [document.family for document in made]
    return _organism_corpus(f"reasoning ({split}, κ = {kappa:g})", made, domains, tokenizer, settings)


def general_corpus(settings: Settings, tokenizer: Any, split: Split, documents: int | None = None) -> Corpus:
    """The general corpus: answers without thinking, drills and plain prose, domains being kinds of document;
    or one piece of each text of ``settings.general_text``. Raises as :func:`reasoning_corpus`.
    """
    n = settings.general_documents if documents is None else documents
    if (source := _source(settings, "general_text")) is not None:
        return text_corpus(source, f"general ({split})", tokenizer, split, n, settings)
    made = list(language.base_documents(n, SEED_OF_CORPORA + settings.seed, split))
    domains = [document.kind for document in made]
    return _organism_corpus(f"general ({split})", made, domains, tokenizer, settings)


def thinking_texts(settings: Settings, tokenizer: Any) -> list[str]:
    """The thinking that words are counted in: of whole texts, or all of the organism's. UserError: none."""
    if (source := _source(settings, "reasoning_text")) is not None:
        found = [thinking_of(text) for text in whole_texts(source, tokenizer, "selection", settings)]
        if not any(found):
            lack = f"mark no thinking with {THINK}…{END_THINK}: put these around it"
            raise UserError(f"The texts of {source.dataset} {lack}, or name others.")
        return found
    corpus = reasoning_corpus(settings, tokenizer, "selection")
    return corpus.texts(tokenizer, corpus.thinking & ~corpus.special)


def solution_texts(settings: Settings, tokenizer: Any) -> list[str]:
    """What words of thinking are ranked against: whole texts of ``settings.solutions_text``, as many as there
    are reasoning documents, of the same problems if of the same dataset; without them the general corpus.
    """
    if settings.corpus == TEXT and settings.solutions_text is not None:
        return whole_texts(settings.solutions_text, tokenizer, "selection", settings)
    corpus = general_corpus(settings, tokenizer, "selection")
    return corpus.texts(tokenizer, ~corpus.special)


def with_words_that_occur(settings: Settings, tokenizer: Any) -> Settings:
    """The settings with the words of R that occur in the reasoning corpus. UserError: fewer than two do."""
    corpus = reasoning_corpus(settings, tokenizer, "selection")
    index = WordIndex(corpus, tokenizer)
    words: list[str] = occurrence_table(index, settings.words, settings.capitalised)["word"].tolist()
    if len(words) < 2:
        few = f"Of the words {', '.join(settings.words)} fewer than two occur in the corpus {corpus.name!r}"
        raise UserError(f"{few}: give other `words`, or more documents.")
    return settings.model_copy(update={"words": words})


def _source(settings: Settings, name: str) -> TextSource | None:
    """The source of texts with this name; None where documents are the organism's."""
    if settings.corpus != TEXT:
        return None
    source: TextSource | None = getattr(settings, name)
    if source is None:
        raise UserError(f"A corpus of texts needs `{name}`: name a dataset or a file in the profile.")
    return source


# a notebook asks for the same traces many times
_traces = lru_cache(4)(lambda *stream: tuple(language.reasoning_documents(*stream)))


def _organism_corpus(
    name: str, documents: Sequence[language.Document], domains: list[str], tokenizer: Any, settings: Settings
) -> Corpus:
    """The organism's documents, each cut at the context, with their labels unless these are not wanted."""
    cut = slice(settings.context)
    encoded = encode_documents(tokenizer, documents)
    tokens = np.concatenate([document.ids[cut] for document in encoded])
    starts = starts_of([len(document.ids[cut]) for document in encoded])
    special = np.isin(tokens, tokenizer.all_special_ids)
    thinking = np.concatenate([document.thinking[cut] for document in encoded])
    plain = Corpus(name, tokens, starts, special, thinking, domains)
    if settings.corpus == UNLABELLED:
        return plain
    moves = np.concatenate([document.labels[cut] for document in encoded])
    styles: list[str] = [document.style or "" for document in documents]
    return replace(plain, moves=moves, move_names=STEP_LABELS, styles=styles)


# --- texts --------------------------------------------------------------------------------------------------


def text_corpus(
    source: TextSource, name: str, tokenizer: Any, split: Split, documents: int, settings: Settings
) -> Corpus:
    """One piece of each text of a source as a corpus; fewer where the source has fewer texts.

    The settings say how many tokens a piece has at most (``context``), and their ``seed`` draws the order of
    texts and where pieces begin. UserError: no texts, or token ids that the tokenizer does not have.
    """
    rows, first = open_texts(source), beginning(tokenizer)
    length = settings.context - len(first)
    pieces, thinking, domains = [], [], []
    order = rows.order(settings.seed, split)
    for row, ids, thought in islice(_encoded(rows, tokenizer, order), documents):
        rng = np.random.default_rng([settings.seed, stable_number(rows.name), row])
        begin = int(rng.integers(0, max(len(ids) - length, 0) + 1))
        pieces.append(np.concatenate([first, ids[begin : begin + length]]))
        thinking += [np.zeros(len(first), dtype=bool), thought[begin : begin + length]]
        domains.append(rows.domain(row))
    if not pieces:
        raise UserError(f"The corpus {name!r} is empty: {source.dataset} has no text in the split {split!r}.")
    tokens, starts = np.concatenate(pieces), starts_of([len(piece) for piece in pieces])
    special = np.isin(tokens, tokenizer.all_special_ids)
    # with nothing before it, the first token of text is of no sentence, and in many models an attention sink
    opening = starts[:-1] + len(first)
    special[starts[:-1]] = True
    special[opening[opening < starts[1:]]] = True
    return Corpus(name, tokens, starts, special, np.concatenate(thinking), domains)


def whole_texts(source: TextSource, tokenizer: Any, split: Split, settings: Settings) -> list[str]:
    """As many whole texts as reasoning documents, in :func:`text_corpus`'s order; UserError: it has none."""
    rows = open_texts(source)
    every = (rows.texts(numbers, tokenizer) for numbers in groups(rows.order(settings.seed, split)))
    texts = list(islice(filter(None, chain.from_iterable(every)), settings.reasoning_documents))
    if not texts:
        raise UserError(f"There are no texts in {source.dataset} ({split}): name another source.")
    return texts


def _encoded(
    rows: "TextRows", tokenizer: Any, order: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int32], Mask]]:
    """Each row's number, token ids and which of them are thinking; texts without tokens are left out."""
    for numbers in groups(order):
        if rows.tokens:
            whole, bos = rows.ids(numbers, tokenizer), tokenizer.bos_token_id
            ids = [row[1:] if row[:1].tolist() == [bos] else row for row in whole]
            thought = [thinking_of_ids(row, tokenizer) for row in ids]
        else:
            ids, thought = encode_texts(rows.texts(numbers, tokenizer), tokenizer)
        yield from (each for each in zip(numbers, ids, thought, strict=True) if len(each[1]))


def groups(order: NDArray[np.int64]) -> Iterator[list[int]]:
    """Numbers of rows, as many at a time as are tokenised together."""
    return (order[i : i + _TEXTS_AT_ONCE].tolist() for i in range(0, len(order), _TEXTS_AT_ONCE))


def _thinking_spans(text: str) -> list[tuple[int, int]]:
    """Where thinking begins and ends; before a first ``</think>`` all is, after a last ``<think>`` too."""
    marks = [(mark[0], *mark.span()) for mark in _MARK.finditer(text)]
    begin, spans = 0 if marks and marks[0][0] == END_THINK else None, []
    for mark, start, end in marks:
        if mark == END_THINK and begin is not None:
            spans.append((begin, start))
            begin = None
        elif mark == THINK and begin is None:
            begin = end
    return spans if begin is None else [*spans, (begin, len(text))]


def thinking_of(text: str) -> str:
    """The part of a text that is thinking, all such parts where there are several."""
    return "\n".join(text[start:end] for start, end in _thinking_spans(text))


def encode_texts(texts: Sequence[str], tokenizer: Any) -> tuple[list[NDArray[np.int32]], list[Mask]]:
    """Token ids of texts without BOS, and which of them are thinking."""
    plain = [without_bos(text, tokenizer) for text in texts]
    encoded = tokenizer.backend_tokenizer.encode_batch(plain, add_special_tokens=False)
    thinking = []
    for text, encoding in zip(plain, encoded, strict=True):
        begins, ends = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        thinking.append(_within(_thinking_spans(text), begins, ends))
    return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encoded], thinking


def thinking_of_ids(ids: NDArray[np.int32], tokenizer: Any) -> Mask:
    """Which of a row's tokens are thinking, whether its marks are single tokens or several."""
    pieces = token_bytes(tokenizer, ids.tolist())
    ends = np.cumsum([len(piece) for piece in pieces])
    text = b"".join(pieces).decode("latin-1")  # a character for every byte
    return _within(_thinking_spans(text), np.concatenate([[0], ends[:-1]]), ends)


def _within(spans: list[tuple[int, int]], begins: NDArray[np.int64], ends: NDArray[np.int64]) -> Mask:
    """Which tokens lie within any span ``[n]``, from where each begins and ends."""
    inside = [(begins >= start) & (ends <= end) for start, end in spans]
    return np.any([np.zeros(len(begins), dtype=bool), *inside], axis=0)


def beginning(tokenizer: Any) -> NDArray[np.int32]:
    """What a piece of text begins with: BOS, where the tokenizer has one."""
    bos = tokenizer.bos_token_id
    return np.asarray([] if bos is None else [bos], dtype=np.int32)


def without_bos(text: str, tokenizer: Any) -> str:
    """A text without the beginning-of-text token that it may begin with."""
    return text.removeprefix(tokenizer.bos_token or "")


def conversation_text(turns: list[dict[str, str]], tokenizer: Any) -> str:
    """A conversation as one text, as the released ``prepare_lmsys_dataset.py`` renders it; where the
    tokenizer lacks R1's marks by its chat template, and without one as its turns with blank lines between.
    """
    if not {USER, ASSISTANT} <= set(tokenizer.get_vocab()):
        if tokenizer.chat_template is None:
            return "\n\n".join(turn["content"] for turn in turns if turn["content"])
        return without_bos(templated(turns, tokenizer), tokenizer)
    marks, ends = {"user": USER, "assistant": ASSISTANT}, {"assistant": tokenizer.eos_token}
    parts = []
    for turn in turns:
        parts += [marks.get(turn["role"], ""), turn["content"], ends.get(turn["role"], "")]
    return "".join(parts[:-1])  # nothing ends the last turn


def templated(turns: list[dict[str, str]], tokenizer: Any, **how: Any) -> str:
    """Turns in the model's chat template; UserError where it refuses them, as Gemma's does a system's."""
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **how))
    except TemplateError as error:
        told = f"The model's chat template refuses {str(turns)[:99]}… ({error})"
        raise UserError(f"{told}: leave such turns out, or give another template.") from error


# --- rows of datasets ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextRows:
    """The rows of a source of texts."""

    source: TextSource
    rows: datasets.Dataset  # mapped from disk
    tokens: bool  # whether the column holds token ids

    @property
    def name(self) -> str:
        return dataset_name(self.source.dataset)

    def order(self, seed: int, split: Split | None = None) -> NDArray[np.int64]:
        """Numbers of the rows, of one split or of all, in a seeded order: the same whatever the column.
        UserError: the ``split_column`` has no row of this split.
        """
        column = self.source.split_column
        if split is None:
            mine = np.arange(len(self.rows))
        elif column is None:
            mine = split_rows(self.name, len(self.rows), split)
        else:
            mine = np.flatnonzero([of == split for of in self.rows.select_columns([column])[:][column]])
            if not len(mine):
                told = f"The column {column!r} of {self.source.dataset} says of no row that it is for {split}"
                raise UserError(f"{told}: name a `split_column` with {', '.join(FRACTIONS)} in it.")
        return np.random.default_rng([seed, stable_number(self.name)]).permutation(mine)

    def texts(self, numbers: list[int], tokenizer: Any) -> list[str]:
        """The texts of some rows, of token ids what they say; empty where a row has none."""

        def text_of(value: Any) -> str:
            if self.tokens:
                return str(tokenizer.decode(value))
            return value if isinstance(value, str) else conversation_text(value, tokenizer)

        return [text_of(value) if value else "" for value in self.rows[numbers][self.source.column]]

    def ids(self, numbers: list[int], tokenizer: Any) -> list[NDArray[np.int32]]:
        """The token ids of some rows of a column that holds them; UserError: the tokenizer lacks one."""
        ids = [np.asarray(value or [], dtype=np.int32) for value in self.rows[numbers][self.source.column]]
        if (largest := max((int(row.max()) for row in ids if len(row)), default=0)) >= len(tokenizer):
            has = f"holds the token id {largest}, but the model's tokenizer has {len(tokenizer)}"
            advice = "take a dataset that was tokenised for this model, or one of texts"
            raise UserError(f"{self.source.dataset} {has}: {advice}.")
        return ids

    def domain(self, number: int) -> str:
        """The domain of a row: what the column of domains says, else the dataset's name."""
        column = self.source.domain
        return self.name if column is None else str(self.rows[number][column] or "other")


def open_texts(source: TextSource) -> TextRows:
    """A source's rows, those without a text told; UserError: as :func:`open_rows`, or none has a text."""
    named = dict.fromkeys([source.column, source.domain, source.split_column])
    rows = open_rows(source, [column for column in named if column is not None])
    empty = np.flatnonzero(rows.data.column(source.column).is_null().to_numpy())
    tell_left_out(source.dataset, len(rows), {f"have no {source.column}": empty.tolist()})
    first = rows[int(np.setdiff1d(np.arange(len(empty) + 1), empty)[0])][source.column]
    return TextRows(source, rows, isinstance(first[0], int))


def split_rows(name: str, n: int, split: Split) -> NDArray[np.int64]:
    """Numbers of the rows of one split among a dataset's first ``n``."""
    drawn = np.random.default_rng(stable_number(name)).random(n)
    place = np.searchsorted(np.cumsum([*FRACTIONS.values()])[:-1], drawn, side="right")
    return np.flatnonzero(place == list(FRACTIONS).index(split))


def dataset_name(reference: str) -> str:
    """The last part of a dataset's name without its revision, or a file's name without its ending."""
    last = reference.rstrip("/").rsplit("/", 1)[-1].split("@", 1)[0]
    ending = Path(last).suffix
    return last.removesuffix(ending) if ending in _ENDINGS else last


def stable_number(text: str) -> int:
    """A number of 32 bits that stands for a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
