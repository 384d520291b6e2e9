import re
from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import HealthCheck, given

from reasoning_features import settings as room
from reasoning_features.errors import UserError
from reasoning_features.settings import Settings, load_settings, notebook_settings, read_overrides


def test_the_shipped_profiles_load_under_their_own_names():
    models = ["deepseek-r1-distill-llama-8b", "deepseek-r1-distill-qwen-1.5b"]
    models += ["llama-3.1-8b-instruct", "nemotron-nano-8b"]
    shipped = [*models, "organism", "qwen2-vl-2b-instruct", "qwen2.5-7b-instruct", "smoke", "smollm2-135m"]
    assert room.shipped_profiles() == shipped
    assert [load_settings(name).run for name in room.shipped_profiles()] == room.shipped_profiles()
    # the paper's says what the paper did
    paper = load_settings("deepseek-r1-distill-llama-8b")
    assert (paper.layer, paper.d_sae, paper.l1, paper.train_batch) == (19, 65_536, 5.0, 4096)
    assert (paper.train_tokens, paper.learning_rate, paper.context) == (200_000 * 4096, 5e-5, 1024)
    assert (paper.alpha, paper.window, paper.selected, paper.gamma) == (0.7, (2, 3), 200, 2.0)
    assert round(1 - paper.selected / paper.d_sae, 3) == 0.997
    assert not paper.planted and not paper.full and not paper.train_saes and len(paper.words) == 10


def test_overrides_name_the_run_sorted_by_field():
    settings = load_settings("organism", window=[1, 2], alpha=0.3, device="cuda")
    assert settings.run == "organism+alpha=0.3+window=1-2"
    assert (settings.window, settings.alpha, settings.device) == ((1, 2), 0.3, "cuda")
    # the profile's own value is no override, and None takes away
    assert load_settings("organism", alpha=0.70, window=[2, 3], device="cuda").run == "organism"
    assert load_settings("organism", base=None).run == "organism+base=None"


def test_a_profile_may_be_a_file_that_extends_a_shipped_one(repository, monkeypatch):
    (repository / "mine.yaml").write_text("extends: smoke\nalpha: 0.5\n")
    (repository / "notebooks").mkdir()
    monkeypatch.chdir(repository / "notebooks")  # a path is taken from the root wherever the caller stands
    settings = load_settings("mine.yaml")
    assert settings.run == "mine" and settings.alpha == 0.5
    assert settings.train_tokens == load_settings("smoke").train_tokens


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [("organism.yaml", "extends: smoke\n", "rename it"),
     ("mine.yaml", "extends: nothing\n", "not a shipped profile"),
     ("mine.yaml", "- 1\n", "one setting a line"), ("mine.yaml", "a: [\n", "not YAML"),
     ("mine.yaml", "extends: smoke\nlayr: 3\n", "no setting 'layr'")],
)  # fmt: skip
def test_a_wrong_profile_file_is_one_sentence(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        load_settings(str(tmp_path / name))


def test_a_profile_reads_what_it_trains_on_and_no_more():
    texts = {"training_text", "base_text", "stages_text"}
    others = {"reasoning_text", "general_text", "solutions_text", "problems"}
    assert set(room.TEXTS) == texts | others | {"refused_questions", "allowed_questions"}
    paper = {"base": "mini/base", "diffing": None}
    assert load_settings("organism", train_saes=False, **paper).unread == texts | {"base"}
    assert not load_settings("organism", train_saes=True, **paper).unread


@pytest.mark.parametrize(
    ("text", "value"),
    [("alpha=0.3", 0.3), ("alpha=1e-3", 1e-3),  # YAML alone takes it for a word
     ("window='[1, 2]'", (1, 2)), ("words='[Wait, \" LET  me\", let’s]'", ["wait", "let me", "let's"]),
     ("subject=no", "no")],  # and this for false
)  # fmt: skip
def test_text_becomes_a_value_of_the_settings_type(text, value):
    found = read_overrides(text)
    settings = load_settings("organism", **found)
    assert [getattr(settings, name) for name in found] == [value]


@pytest.mark.parametrize(
    ("text", "words"),
    [("alpha", "name=value"), ("alpha='0.3", "quotes"), ("profile=smoke", "PROFILE=smoke"),
     ("device=cuda", "DEVICE=cuda"), ("alfa=1", "There is no setting 'alfa' for PARAMS: see alpha"),
     ("alpha=much", "alpha"), ("window='[-1,2]'", "window"),
     ("words='[wait, but, Wait]'", "the word 'wait' stands twice"),
     ("words='[wait, \" \"]'", "a word is empty"), ("alpha=.inf", "'alpha' .* finite"),
     ("gamma=nan", "'gamma' .* finite"), ("strengths='[0.1, .nan]'", "'strengths.1' .* finite"),
     ("alphas='[-.inf]'", "'alphas.0' .* finite"), ("learning_rate=1e999", "'learning_rate' .* finite")],
)  # fmt: skip
def test_words_that_are_no_settings_are_refused_in_one_sentence(text, words):
    with pytest.raises(UserError, match=words) as caught:
        load_settings("organism", **read_overrides(text))
    assert "\n" not in str(caught.value)


def test_a_line_of_the_cell_left_as_the_organism_has_it_stands_for_the_profiles_own_value(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: smoke\nalpha: 0.5\ncontrast: null\n")

    def asked(profile, changes=None, **lines):
        names = {"profile": str(profile), "changes": changes or {}, "layer": 3} | lines
        return notebook_settings(names | {"__annotations__": dict.fromkeys(["profile", "changes", *lines])})

    assert asked(mine, alpha=0.7, window=[2, 3]).alpha == 0.5 and asked(mine).layer == 2
    run = load_settings(str(mine)).run
    assert asked(mine, alpha=0.3).run == f"{run}+alpha=0.3"
    assert asked(mine, {"alpha": 0.7, "layer": 1}, alpha=0.7).run == f"{run}+alpha=0.7+layer=1"
    assert asked(mine, alpha=0.5, contrast=None).run == run
    assert asked("organism", contrast=None).contrast is None
    for wrong, words in (({"alpa": 1}, "no setting 'alpa'"), ({"alpha": "much"}, "'alpha' of profile")):
        with pytest.raises(UserError, match=words):
            asked("organism", wrong)


def test_profiles_and_values_with_awkward_names_have_runs_of_their_own(repository, tmp_path):
    names = ["mine", "mine (1)", "mine_1", "it's", "a&b", "a b", "a_b", "a+b", "cost$5", "50%", "mine "]
    files = [tmp_path / name for name in (*(f"{name}.yaml" for name in names), "a/mine.yaml", "mine.yml")]
    (tmp_path / "a").mkdir()
    for file in files:
        file.write_text("extends: smoke\n")
    runs = {load_settings(str(file)).run for file in files}
    assert len(runs) == len(files) and all(re.fullmatch(r"[\w.-]+", run, re.ASCII) for run in runs)
    (repository / "Bench.yaml").write_text("extends: smoke\n")
    with pytest.raises(UserError, match="has the name of a shipped folder"):
        load_settings("Bench.yaml")
    subjects = ("data/organism/models/coupled-1", "elsewhere/coupled-1", "a b", "a_b")
    values = [{"subject": subject} for subject in subjects]
    lists = ["let me", "but"], ["let", "me", "but"], ["a-b", "c"], ["a", "b-c"], ["a", "b", "c"]
    values += [{"words": words} for words in lists]
    runs = {load_settings("organism", **value).run for value in values}
    assert len(runs) == 9 and all("/" not in run and " " not in run for run in runs)
    counts = "_documents", "_problems", "_tokens"
    many = {name: 12345 for name in Settings.model_fields if name.endswith(counts)}
    assert len(load_settings("organism", **many).run) < 200 < sum(len(f"+{name}=12345") for name in many)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(sorted(Settings.model_fields)) | st.text(max_size=8)


def works_or_says_why(asked: Callable[[], Settings]) -> None:
    """Settings, or one sentence; a run's name is always one folder's."""
    try:
        run = asked().run
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error)
    else:
        assert re.fullmatch(r"[\w.+=-]{1,250}", run, re.ASCII) and run.strip(".") == run


@hypothesis.settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(NAMES, ANYTHING, max_size=4) | ANYTHING, st.binary(max_size=40) | st.none())
def test_any_profile_works_or_is_refused_in_a_sentence(repository, values, raw):
    file = repository / "mine.yaml"
    text = yaml.safe_dump({"extends": "smoke"} | values if isinstance(values, dict) else values)
    file.write_bytes(text.encode() if raw is None else raw)
    works_or_says_why(lambda: load_settings("mine.yaml"))


@hypothesis.settings(max_examples=80, deadline=None)
@given(st.text(max_size=60) | st.builds("{}={!r}".format, NAMES, ANYTHING), st.text(max_size=20))
def test_any_parameters_and_any_path_work_or_are_refused_in_a_sentence(text, path):
    works_or_says_why(lambda: load_settings("smoke", **read_overrides(text)))
    works_or_says_why(lambda: load_settings(path))


@hypothesis.settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=8) | st.floats(), max_size=5), st.lists(st.floats(), max_size=5))
def test_any_words_and_strengths_work_or_are_refused_in_a_sentence(words, strengths):
    works_or_says_why(lambda: load_settings("smoke", words=words, strengths=strengths, gammas=strengths))
