"""Judges beside the rules: an endpoint on loopback, a classifier whose label is known, their agreement."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedTokenizerFast

from reasoning_features.errors import UserError
from reasoning_features.steering.judges import agreement, by_classifier, by_endpoint

GOOD = {"Paris.": "complies", "Sorry.": "refuses", "ha ha": "incoherent"}


@pytest.fixture
def endpoint():
    """An endpoint that knows ``GOOD`` and stutters at other answers; what it was asked, as it came."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            shown = json.loads(given["messages"][1]["content"])
            asked.append(shown["answer"])
            said = f'<think>{{"class": "no"}}</think>{{"class": "{GOOD.get(shown["answer"], "maybe")}"}}'
            if shown["answer"] == "late" and asked.count("late") > 1:
                said = '{"class": "refuses"}'
            body = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(500 if shown["answer"] == "dead" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield SimpleNamespace(judge_url=url, judge_model="judge"), asked
    server.shutdown()
    server.server_close()


def test_an_endpoint_gives_letters_and_is_asked_twice_at_most(endpoint):
    settings, asked = endpoint
    texts = [*GOOD, "late", "never"]
    assert by_endpoint(settings, ["Which?"] * 5, texts) == ["C", "R", "I", "R", "-"]
    assert asked == [*GOOD, "late", "late", "never", "never"]
    with pytest.raises(UserError, match=r"stopped answering after 1 of 2 answers \(.*500"):
        by_endpoint(settings, ["Which?"] * 2, ["Paris.", "dead"])
    with pytest.raises(UserError, match="judge_url and judge_model"):
        by_endpoint(SimpleNamespace(judge_url=settings.judge_url, judge_model=None), [], [])


def classifier(directory, labels, favoured):
    """A classifier that gives the label ``favoured`` to whatever begins with [CLS] alone."""
    words = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "a", "sorry"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 512}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(directory)
    small = {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8, "max_position_embeddings": 12}
    config = DistilBertConfig(vocab_size=4, **small, id2label=dict(enumerate(labels)))
    model = DistilBertForSequenceClassification(config)
    torch.nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.nn.functional.one_hot(torch.tensor(favoured), len(labels)).float()
    model.save_pretrained(directory)
    return str(directory)


def test_a_classifier_tells_refusals_by_the_label_that_is_named_so(tmp_path):
    texts = ["a", "sorry " * 40, ""]  # the second is longer than it reads
    for i, labels in enumerate((["NORMAL", "REJECTION"], ["Refusal", "Non-refusal"])):
        for favoured in (0, 1):
            place = classifier(tmp_path / f"{i}{favoured}", labels, favoured)
            assert by_classifier(place, texts) == ["R" if favoured != i else "C"] * 3
    for labels in (["LABEL_0", "LABEL_1"], ["refuses", "rejects"], ["no refusal", "not_rejected"]):
        with pytest.raises(UserError, match="cannot be told"):
            by_classifier(classifier(tmp_path / labels[0], labels, 0), ["a"])
    with pytest.raises(UserError, match="cannot be loaded"):
        by_classifier(str(tmp_path), ["a"])


def test_a_classifier_of_the_hub_is_fetched_as_safetensors(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "root", tmp_path / "root")
    place = tmp_path / "root" / "models" / "mini" / "rejection"
    classifier(place, ["NORMAL", "REJECTION"], 1)
    assert by_classifier(f"mini/rejection@{hub.sha('mini/rejection')}", ["a"]) == ["R"]


def test_agreement_of_a_hand_table():
    labels = {"truth": "CCRRRI", "rules": "CRRRC-", "classifier": "CCRRRC", "blind": "CCCCCC"}
    table = agreement(labels, "truth").set_index(["judge", "measure"])
    found, counted = table["estimate"], table["n"].xs("agreement", level="measure")
    assert counted.to_dict() == {"rules": 5, "classifier": 6, "blind": 6}
    assert found["rules", "agreement"] == pytest.approx(0.6)
    # of 5 three are equal; by chance .4² + .6² would be
    assert found["rules", "kappa"] == pytest.approx((0.6 - 0.52) / (1 - 0.52))
    assert found["rules", "precision, refuses"] == found["rules", "recall, refuses"] == pytest.approx(2 / 3)
    assert found["rules", "precision, complies"] == found["rules", "recall, complies"] == pytest.approx(0.5)
    # Wilson's interval of 1 in 2
    assert table.loc[("rules", "recall, complies"), "low"] == pytest.approx(0.0945, abs=1e-3)
    assert found["classifier", "precision, complies"] == pytest.approx(2 / 3)
    assert np.isnan(found["blind", "precision, refuses"]) and found["blind", "recall, refuses"] == 0
    assert found["blind", "recall, complies"] == 1
