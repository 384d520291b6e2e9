"""What pruning does to a tiny model: texts, statistics and measures agree with plain passes."""

import json

import numpy as np
import pytest
import torch

from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.files import write_json, write_table
from reasoning_features.settings import load_settings
from reasoning_features.sparsity import pruning, study
from reasoning_features.sparsity.layers import linear_layers
from reasoning_features.sparsity.patterns import Pattern, Unstructured
from reasoning_features.sparsity.pruning import DENSE, WEIGHTS, Setting, Workbench
from reasoning_features.sparsity.study import as_table
from reasoning_features.text.corpora import general_corpus

GRID = (
    DENSE, Setting(Pattern(2, 4)), Setting(Pattern(2, 4), correction="VAR"),
    Setting(Pattern(2, 4), correction="L-PTS"), Setting(Unstructured(0.5), WEIGHTS, "Wanda"),
    Setting(Pattern(2, 4), which=(1, 2)), Setting(Pattern(2, 4), which="mlp"),
)  # fmt: skip


@pytest.fixture(scope="module")
def workbench(tiny_subject):
    rng = torch.Generator().manual_seed(0)
    read, held_out = (list(torch.randint(2, 300, (4, 24), generator=rng)) for _ in range(2))
    layers = linear_layers(tiny_subject.model)
    statistics = pruning.calibrate(tiny_subject.model, layers, [text[None] for text in read], keep=4)
    starts = [1, 1, 5, 23]
    dense = [pruning._log_probabilities(tiny_subject, *pair) for pair in zip(held_out, starts, strict=True)]
    return Workbench(tiny_subject, held_out, starts, dense, read, statistics)


def test_all_kept_is_the_dense_model_and_what_is_pruned_moves_away_from_it(workbench):
    dense, found = workbench.measured(), []
    for setting in GRID:
        with workbench.pruned(setting):
            found.append(workbench.measured())
    assert dense["divergence"] == pytest.approx(np.zeros(4), abs=1e-6)
    assert all(np.array_equal(found[0][name], dense[name]) for name in dense)
    for own in found[1:]:
        assert (own["divergence"] > 1e-5).all() and not np.array_equal(own["loss"], dense["loss"])
    again = workbench.measured()
    assert all(np.array_equal(again[name], dense[name]) for name in dense), "no trace is left"
    table = as_table(GRID, found)
    assert len(table) == len(GRID) * 2 * 4 and not table.isna().any(axis=None)
    assert set(table["layers"]) == {"all", "mlp", "blocks 1 to 2"}


def test_the_loss_is_of_tokens_from_the_start_on(workbench):
    found, model = workbench.measured()["loss"], workbench.subject.model
    for text, start, loss in zip(workbench.texts, workbench.starts, found, strict=True):
        labels = text.clone()
        labels[:start] = -100
        with torch.no_grad():
            assert loss == pytest.approx(float(model(text[None], labels=labels[None]).loss), rel=1e-5)


def test_the_grid_has_each_setting_once_and_a_table_tells_them_apart():
    for blocks, learnt in ((2, True), (30, False)):
        made = pruning.grid(blocks, learnt)
        rows = [tuple(setting.row.values()) for setting in made]
        assert len(set(rows)) == len(rows) == len(made) and made[0] == DENSE
        assert any(setting.correction in pruning.LEARNT for setting in made) is learnt
        parts = pruning.thirds(blocks)
        assert [block for part in parts for block in part] == list(range(blocks))
        assert sum(map(pruning.is_bridged, made)) == 5 + len(parts)
        assert sum(map(pruning.has_tasks, made)) == 11 and len(made) == (56 if learnt else 48) - 2 * (
            3 - len(parts)
        )


def test_texts_of_the_organism_are_traces_and_count_from_their_thinking_on(organism_subject):
    settings, subject = organism_subject
    texts, starts = pruning.load_texts(settings, subject, "evaluation", 5)
    assert len(texts) == 5
    for text, start in zip(texts, starts, strict=True):
        before, rest = (subject.tokenizer.decode(part) for part in (text[:start], text[start:]))
        assert before.rstrip().endswith("<think>") and "</think>" in rest


def test_windows_are_of_texts_that_fill_them(tiny_subject, tmp_path):
    rows = [{"text": f"Wait, {i} + 7 is right. " * (1 + i % 4), "split": "evaluation"} for i in range(40)]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"dataset": str(tmp_path / "text.jsonl"), "split_column": "split"}
    settings = load_settings("organism", corpus="text", general_text=source, context=16)
    texts, starts = pruning.load_texts(settings, tiny_subject, "evaluation", 7)
    assert [len(text) for text in texts] == [16] * 7 and starts == [1] * 7
    more, _ = pruning.load_texts(settings, tiny_subject, "evaluation", 1000)
    lengths = np.diff(general_corpus(settings, tiny_subject.tokenizer, "evaluation", 40).starts)
    assert len(more) == (lengths == 16).sum() < 40, "as many as there are"
    assert all(torch.equal(first, second) for first, second in zip(texts, more, strict=False))
    with pytest.raises(UserError, match=r"Fewer than two .* have 5000 tokens: take longer ones"):
        wide = load_settings("organism", corpus="text", general_text=source, context=5000)
        pruning.load_texts(wide, tiny_subject, "evaluation", 1)


def test_divergence_is_from_the_dense_model_whatever_is_measured_first(organism_subject):
    settings, subject = organism_subject
    few = settings.model_copy(update={"sparsity_calibration": 3})
    found = []
    for order in ((Setting(Pattern(2, 4)), DENSE), (DENSE, Setting(Pattern(2, 4)))):
        laid_out = pruning.load_workbench(few, subject, 3)
        for setting in order:
            with laid_out.pruned(setting):
                found.append(laid_out.measured()["divergence"])
    assert np.array_equal(found[0], found[3]) and (found[0] > 0.01).any() and not found[1].any()


def test_a_study_made_with_other_settings_is_refused(tmp_path):
    settings = load_settings("organism", activation_sparsity=tmp_path.as_posix())
    place = study.study_folder(settings)
    with pytest.raises(MissingArtefact, match="make activation-sparsity"):
        study.load_study(settings)
    values = {"loss": np.array([1.0, 3.0])}
    write_table(place / "measured.parquet", as_table([DENSE], [values]))
    told = {"model": "coupled-0", "blocks": 5, "settings": study.determined_by(settings)}
    write_json(place / "study.json", told)
    (found,) = study.load_studies(settings)
    assert found.values(DENSE, "loss").tolist() == [1.0, 3.0]
    assert not len(found.values(GRID[1], "loss")) and found.tasks == ["unsteered: correct"]
    other = load_settings("organism", activation_sparsity=tmp_path.as_posix(), sparsity_texts=3)
    with pytest.raises(UserError, match="was made with sparsity_texts = 64, not 3"):
        study.load_study(other)
    with pytest.raises(UserError, match="give activation_sparsity"):
        study.study_folder(load_settings("organism", activation_sparsity=None))
