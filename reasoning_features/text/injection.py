"""Words put into plain documents at random places between words, and where exactly they land."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reasoning_features.errors import UserError
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.sentences import sentence_of, sentence_starts
from reasoning_features.text.word_masks import TokenIndex, form_ids

INJECTED, LENGTH = 3, 64
"""Words put into a document, and the tokens of it that are kept (2601.05679)."""


@dataclass(frozen=True)
class Injection:
    """Plain documents with words put in.

    Attributes:
        corpus: the documents, longer by what was put in.
        spans: start and end (exclusive) in ``corpus.tokens`` of each word that was put in ``[n, 2]``.
        places: where each stands in the untouched corpus: the token it was put before ``[n]``.
    """

    corpus: Corpus
    spans: NDArray[np.int64]
    places: NDArray[np.int64]


def plain_documents(general: Corpus) -> Corpus:
    """Documents without thinking; where moves are known, those of prose alone.

    Raises:
        UserError: there is none.
    """
    spans = [general.span(i) for i in range(general.n_documents)]
    plain = np.array([not general.thinking[span].any() for span in spans])
    if general.moves is not None and "prose" in general.move_names:
        code = general.move_names.index("prose")
        plain &= np.array([(general.moves[span] == code).any() for span in spans])
    if not plain.any():
        raise UserError(f"The corpus {general.name!r} has no plain documents: raise `general_documents`.")
    return general.select(np.flatnonzero(plain))


def hosts(plain: Corpus, tokenizer: Any, words: Sequence[str], n: int, length: int = LENGTH) -> Corpus:
    """Documents to put words into: sentences that hold one of the words in any form are taken out first.

    Otherwise a feature of such a word would be active in a document before anything was put in.

    Args:
        plain: documents without thinking.
        tokenizer: the subject's.
        words: what will be put in.
        n: words that each document has to have room for; shorter ones are left out.
        length: tokens at which each document is cut.

    Raises:
        UserError: no document is left.
    """
    index = TokenIndex(plain)
    spans = np.concatenate([index.occurrences(form_ids(tokenizer, word, ())) for word in words])
    sentence = sentence_of(plain, sentence_starts(plain, tokenizer))
    holding = np.unique(sentence[index.mask(spans, (0, 0))])
    bare = _kept(plain, plain.special | ~np.isin(sentence, holding))
    cut = _kept(bare, bare.position_of < length)
    room = np.bincount(cut.document_of[word_boundaries(cut, tokenizer)], minlength=cut.n_documents)
    if not (room >= n).any():
        raise UserError(
            f"No plain document of {plain.name!r} has {n} words outside sentences that hold a word of R: "
            "raise `general_documents`."
        )
    return cut.select(np.flatnonzero(room >= n))


def _kept(corpus: Corpus, keep: NDArray[np.bool_]) -> Corpus:
    """The corpus of these tokens alone ``[n_tokens]``; documents of which none is left go."""
    lengths = np.add.reduceat(keep.astype(np.int64), corpus.starts[:-1])
    return Corpus(
        name=corpus.name,
        tokens=corpus.tokens[keep],
        starts=np.concatenate([[0], np.cumsum(lengths[lengths > 0])]).astype(np.int64),
        special=corpus.special[keep],
        thinking=corpus.thinking[keep],
        domains=[domain for domain, length in zip(corpus.domains, lengths, strict=True) if length],
    )


def usual_forms(
    corpus: Corpus, tokenizer: Any, words: Sequence[str], capitalised_only: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """The token ids of the form that each word takes most often in a corpus.

    Raises:
        UserError: the tokenizer cannot write a word.
    """
    index, found = TokenIndex(corpus), {}
    for word in words:
        forms = form_ids(tokenizer, word, capitalised_only)
        found[word] = max(forms, key=lambda form: len(index.occurrences([form])))
    return found


def word_boundaries(corpus: Corpus, tokenizer: Any) -> NDArray[np.int64]:
    """Tokens before which a word can be put ``[n]``: those within a document that begin a word."""
    ids, where = np.unique(corpus.tokens, return_inverse=True)
    texts = [tokenizer.decode([int(token)], clean_up_tokenization_spaces=False) for token in ids]
    begins = np.array([text[:1].isspace() and bool(text.strip()) for text in texts])[where]
    begins[sentence_starts(corpus, tokenizer)] = True
    begins[corpus.starts[:-1]] = False
    return np.flatnonzero(begins & ~corpus.special).astype(np.int64)


def inject(
    corpus: Corpus, places: NDArray[np.int64], forms: Sequence[tuple[int, ...]], name: str
) -> Injection:
    """Put ``forms[j]`` before the token ``places[j]`` of the corpus; everything else stays as it is.

    Args:
        corpus: plain documents.
        places: indices into ``corpus.tokens``, ascending, none twice and none a document's first token.
        forms: token ids, one sequence a place.
        name: of the new corpus.
    """
    lengths = np.array([len(form) for form in forms], dtype=np.int64)
    put = np.repeat(places, lengths)
    ids = np.array([token for form in forms for token in form], dtype=np.int32)
    ahead = np.concatenate([[0], np.cumsum(lengths)])
    added = np.zeros(corpus.n_tokens + 1, dtype=np.int64)
    np.add.at(added, places, lengths)
    shift = np.concatenate([[0], np.cumsum(added)])
    changed = Corpus(
        name=name,
        tokens=np.insert(corpus.tokens, put, ids),
        starts=corpus.starts + shift[corpus.starts],
        special=np.insert(corpus.special, put, False),
        thinking=np.insert(corpus.thinking, put, False),
        domains=corpus.domains,
    )
    starts = places + ahead[:-1]
    return Injection(changed, np.stack([starts, starts + lengths], axis=1), places)


def draw_places(corpus: Corpus, tokenizer: Any, n: int, seed: int) -> NDArray[np.int64]:
    """``n`` word boundaries in every document, drawn without replacement ``[documents · n]``, ascending.

    Raises:
        UserError: a document has fewer than ``n``.
    """
    rng = np.random.default_rng(seed)
    boundaries = word_boundaries(corpus, tokenizer)
    cuts = np.searchsorted(boundaries, corpus.starts)
    drawn = []
    for first, last in pairwise(cuts.tolist()):
        if last - first < n:
            raise UserError(f"A plain document has fewer than {n} words: use longer documents.")
        drawn.append(np.sort(rng.choice(boundaries[first:last], size=n, replace=False)))
    return np.concatenate(drawn).astype(np.int64)
