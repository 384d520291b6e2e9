"""Rules for what is written: bans that no casing or spacing evades, biases, decisions forced at a rate."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from reasoning_features.errors import UserError
from reasoning_features.models.sampling import TEMPERATURE
from reasoning_features.organism import language
from reasoning_features.organism.parser import DECISIONS, first_tokens
from reasoning_features.settings import load_settings
from reasoning_features.steering import token_rules as rules
from reasoning_features.steering.token_rules import Ban
from reasoning_features.text.corpora import reasoning_corpus
from reasoning_features.truth.decisions import Rates, decision_rates, rates_of


@pytest.fixture(scope="module")
def tokenizer(organism_tokenizer):
    return organism_tokenizer


@pytest.fixture(scope="module")
def corpus(tokenizer):
    return reasoning_corpus(load_settings("organism", reasoning_documents=200), tokenizer, "selection")


def forbidden(rule: Ban, text: str, tokenizer) -> set[str]:
    """The tokens that may not follow a text."""
    tokens = tokenizer.encode(text, add_special_tokens=False)
    logits = rule.logits(torch.zeros(1, len(rule.pieces)), [0], [tokens])[0]
    return {rule.pieces[token] for token in (logits == -torch.inf).nonzero().flatten().tolist()}


def test_a_ban_forbids_what_would_complete_a_word():
    pieces = ("Wait", " wait", "wait", "W", "ait", "AIT", "WAIT,", "ing", " me", "me", "let", " ", "\n", "a")
    rule = Ban(("wait", "let me"), (), pieces)

    def after(*written):
        logits = rule.logits(torch.zeros(1, len(pieces)), [0], [[pieces.index(piece) for piece in written]])
        return {piece for piece, value in zip(pieces, logits[0].tolist(), strict=True) if value < 0}

    whole = {"Wait", " wait", "wait", "WAIT,"}
    assert after() == whole
    assert after("W") == {" wait", "ait", "AIT"}
    assert after("a") == {" wait"}  # "await" is another word
    assert after("a", "W") == {" wait"}
    assert after("let") == {" wait", " me"}
    assert after("let", " ", "\n") == whole | {" me", "me"}
    assert after("a", "let", " ") == whole


def test_a_banned_word_is_never_written(tokenizer, corpus):
    """Rows that draw from all tokens at once, and write banned words again and again where they may."""
    banned = ["wait", "let me", "hmm"]
    rule = rules.ban(tokenizer, banned, corpus)
    letters = [i for i, piece in enumerate(rule.pieces) if re.fullmatch(r"[ \n]?[waithmle]*", piece, re.I)]
    rng = np.random.default_rng(0)
    sought = re.compile(r"(?<!\w)(?:wait|let\s+me|hmm)(?!\w)", re.I)
    for kept in (True, False):
        texts = []
        for row in range(60):
            written: list[int] = []
            for _ in range(60):
                logits = torch.full((1, len(rule.pieces)), -torch.inf)
                logits[0, letters] = torch.tensor(rng.gumbel(size=len(letters)), dtype=torch.float32)
                if kept:
                    logits = rule.logits(logits, [row], [written])
                written.append(int(logits[0].argmax()))
            texts.append("".join(rule.pieces[token] for token in written))
        assert any(sought.search(text) for text in texts) is not kept


def test_tokens_that_mostly_begin_banned_words_are_forbidden_from_the_start(tokenizer, corpus):
    rule = rules.ban(tokenizer, ["alternatively", "therefore"], corpus)
    beginnings = {rule.pieces[token] for token in rule.beginnings}
    for word in ("Alternatively", "Therefore"):
        first = rule.pieces[tokenizer.encode(word, add_special_tokens=False)[0]]
        assert first in beginnings and first in forbidden(rule, "<think>\n", tokenizer)
    assert " there" not in beginnings  # "undo there."
    assert " there" not in forbidden(rule, "Wait, now undo", tokenizer)
    # a model with room for more tokens than its tokenizer has
    narrow = rule.logits(torch.zeros(1, len(tokenizer)), [0], [[]])
    for written in ([], [len(tokenizer) + 1]):
        wide = rule.logits(torch.zeros(1, len(tokenizer) + 5), [0], [written])
        assert torch.equal(wide[:, :-5], narrow) and bool((wide[:, -5:] == 0).all())


def test_a_bias_ends_with_the_thinking(tokenizer):
    rule = rules.bias_to_go_on(tokenizer, 1.5)
    end = tokenizer.convert_tokens_to_ids("</think>")
    biased = rule.logits(torch.zeros(2, len(tokenizer)), [0, 1], [[9, 8], [9, end, 8]])
    expected = torch.zeros(2, len(tokenizer))
    expected[0, [*first_tokens(tokenizer, language.GIVE_UP_OPENERS), end]] = -1.5
    assert torch.equal(biased, expected)
    towards = rules.bias_to_words(tokenizer, ["wait"], 2.0)
    assert set(towards.nats.values()) == {2.0}
    assert {rules.token_pieces(tokenizer)[token] for token in towards.nats} >= {"Wait"}


def test_thinking_goes_on_where_it_would_end(tokenizer):
    end = tokenizer.convert_tokens_to_ids("</think>")
    rule = rules.forced_wait(tokenizer, 2)
    assert tokenizer.decode(list(rule.sequence)) == "Wait,"
    wanted = [7, end, 8, 8, end, end, end, 8]
    rows: list[list[int]] = [[], []]
    for token in wanted:
        drawn = rule.drawn(torch.tensor([token, 7]), [0, 1], rows)
        for row, new in zip(rows, drawn.tolist(), strict=True):
            row.append(new)
    # the forced tokens take the places of what was drawn there
    filled = [7, *rule.sequence, *wanted[1 + len(rule.sequence) :]]
    at = filled.index(end)
    expected = [*filled[:at], *rule.sequence, *wanted[at + len(rule.sequence) :]]
    assert rows == [expected, [7] * 8]


DOMAINS = ("pair", "times", "ops")
RATES = Rates({("pair", 1): 0.2, ("pair", 2): 0.9}, {"times": 0.6}, 0.4)


def test_forcing_draws_sides_at_its_rates_and_nothing_else(tokenizer):
    domains = [DOMAINS[i % 3] for i in range(3000)]
    rule = rules.forced_rates(tokenizer, RATES, domains, seed=0)
    for domain in DOMAINS:
        for dead_end in (1, 2):
            sides = [rule.goes_on(i, dead_end) for i in range(3000) if domains[i] == domain]
            assert np.mean(sides) == pytest.approx(RATES.of(domain, dead_end), abs=0.05)


def test_only_the_openers_of_the_side_are_left_and_all_else_keeps_its_chance(tokenizer):
    rule = rules.forced_rates(tokenizer, RATES, DOMAINS, seed=0)
    head = "<think>\nWait, now try 3 + 9 = 12, low.\nHmm, so doubt that.\n"
    texts = {
        "decides": head + "But, then",
        "marker next": head + "But,",
        "decided": head + "But, then undo there.\nWait, so",
        "found": "<think>\nWait, now try 3 + 9 = 12, yes.\nBut, then",
        "ended": head + "</think>\nBut, then",
    }
    torch.manual_seed(0)
    logits = 2 * torch.randn(1, len(tokenizer))
    before = torch.softmax(logits[0].double() / TEMPERATURE, 0)
    sides = [first_tokens(tokenizer, openers) for openers in DECISIONS["persistence"]]
    others = [token for token in range(len(tokenizer)) if token not in sides[0] + sides[1]]
    for name, text in texts.items():
        written = [tokenizer.encode(text, add_special_tokens=False)]
        forced = rule.logits(logits, [0], written)
        if name != "decides":
            assert torch.equal(forced, logits), name
            continue
        chances = torch.softmax(forced[0].double() / TEMPERATURE, 0)
        taken, barred = sides if rule.goes_on(0, 1) else sides[::-1]
        assert chances[barred].sum() == 0
        torch.testing.assert_close(chances[others], before[others], rtol=1e-5, atol=1e-9)
        within = before[taken] / before[taken].sum()
        torch.testing.assert_close(chances[taken] / chances[taken].sum(), within, rtol=1e-5, atol=1e-9)


def test_rates_are_read_off_the_texts_and_few_decisions_are_pooled():
    head = "<|bos|><|user|>Q<|assistant|><think>\n"
    tries = head + "Wait, now try 3 + 9 = 12, low.\nHmm, so "
    again = "undo there.\nWait, now take 3 + 4 = 7, low.\nAnd, thus stop with 3 + 4.\n</think>\n"
    texts = [tries + again, tries + "quit with 3 + 9.\n</think>\n", "Plain prose."]
    table = decision_rates(pd.DataFrame({"domain": ["pair", "pair", "ops"], "text": texts}))
    assert table.values.tolist() == [["pair", 1, 0.5, 2], ["pair", 2, 0.0, 1]]
    rows = [("pair", 1, 0.5, 30), ("pair", 2, 1.0, 10), ("ops", 1, 0.0, 5)]
    table = pd.DataFrame(rows, columns=["domain", "dead_end", "went_on", "n"])
    rates = rates_of(table)
    places = [("pair", 1), ("pair", 2), ("ops", 1)]
    assert [rates.of(*place) for place in places] == pytest.approx([0.5, 25 / 40, 25 / 45])
    with pytest.raises(UserError, match="hold 5 dead ends, too few"):
        rates_of(table.tail(1))
    places = [("pair", 1), ("pair", 3), ("times", 1), ("ops", 1)]
    assert [RATES.of(*place) for place in places] == [0.2, 0.4, 0.6, 0.4]
