"""Metrics of unlearning: against hand-made models and numbers, and whatever shares a batch."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from reasoning_features.unlearning import metrics
from reasoning_features.unlearning.items import CAPTION, IGNORED, NAME, TEXT, Item

END, PAD, PICTURE, OPEN = 1, 2, 3, 4  # tokens; a character is a token too
FLOOR = 1 - np.sqrt(np.log(2))


def item(question="q", answer="a", paraphrase="b", perturbed=("c", "d"), person=0, task=TEXT, shade=None):
    picture = None if shade is None else np.full((8, 8, 3), shade, dtype=np.uint8)
    return Item(person, task, question, answer, paraphrase, perturbed, picture)


def tokens_of(text):
    return [ord(letter) - 80 for letter in text]  # "a" is 17


class Letters:
    """The tokenizer's side that generation needs."""

    eos_token_id = END

    def batch_decode(self, rows, skip_special_tokens):
        return ["".join(chr(int(t) + 80) for t in row if t not in (END, PAD)) for row in rows]


def encoder(each_picture=()):
    """Encodes letters as tokens; the tokens ``each_picture`` stand for a picture, before the question."""

    def encode(items, answers):
        prompts = [[*each_picture, *tokens_of(own.question)] for own in items]
        answers = [[*tokens_of(answer), END] for answer in answers]
        width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids, labels = torch.full((len(items), width), PAD), torch.full((len(items), width), IGNORED)
        mask = torch.zeros_like(ids)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            whole = len(prompt) + len(answer)
            ids[row, :whole], mask[row, :whole] = torch.tensor(prompt + answer), 1
            labels[row, len(prompt) : whole] = torch.tensor(answer)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    return encode


def with_pixels(items, answers):
    shades = torch.tensor([float(own.picture[0, 0, 0]) for own in items]) / 255
    pixels = shades[:, None, None, None] * torch.ones(1, 3, 8, 8)
    return encoder([PICTURE] * 4)(items, answers) | {"pixel_values": pixels}


def with_patches(items, answers):
    shades = torch.tensor([float(own.picture[0, 0, 0]) for own in items]) / 255
    inputs = encoder([OPEN, PICTURE])(items, answers)
    return inputs | {
        "pixel_values": shades.repeat_interleave(4)[:, None] * torch.ones(1, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 2, 2]] * len(items)),
        "mm_token_type_ids": (inputs["input_ids"] == PICTURE).long(),
    }


class Fixed(torch.nn.Module):
    """Gives each token the same probability wherever it stands."""

    def __init__(self, probabilities):
        super().__init__()
        self.head = torch.nn.Identity()
        self.logits = torch.full((60,), -100.0)
        for letter, probability in probabilities.items():
            self.logits[END if letter == "." else tokens_of(letter)[0]] = np.log(probability)

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, attention_mask, use_cache):
        return SimpleNamespace(logits=self.head(self.logits.expand(*input_ids.shape, -1)))


def llama(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        initializer_range=0.5, eos_token_id=END, bos_token_id=0, pad_token_id=PAD,
    )  # fmt: skip
    return config, AutoModelForCausalLM.from_config(config).eval()


def llava():
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8,
        patch_size=4, projection_dim=16, initializer_range=0.5, initializer_factor=5.0,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=llama()[0], image_token_index=PICTURE, vision_feature_layer=-1
    )
    return spread(LlavaForConditionalGeneration(config))


def qwen():
    config = Qwen2VLConfig(
        text_config=dict(
            vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            num_key_value_heads=2, eos_token_id=END, bos_token_id=0,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        ),
        vision_config=dict(depth=2, embed_dim=16, hidden_size=16, num_heads=2, mlp_ratio=2, patch_size=4),
        image_token_id=PICTURE, vision_start_token_id=OPEN, vision_end_token_id=5, video_token_id=6,
    )  # fmt: skip
    return spread(Qwen2VLForConditionalGeneration(config))


def spread(model):
    """Weights wide enough for answers to differ from question to question; letters and END are written."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    never = torch.tensor([0, PAD, PICTURE, OPEN, 5, 6])
    model.lm_head.register_forward_hook(lambda head, given, logits: logits.index_fill(-1, never, -99.0))
    return model.eval()


def by_loop(model, encode, own, new_tokens=6):
    """Greedy decoding of one item without padding or cache, through the answer's own encoding."""
    written = ""
    for _ in range(new_tokens):
        inputs = encode([own], [written])
        given = {name: values for name, values in inputs.items() if name != "labels"}
        with torch.no_grad():
            token = int(model(**given, use_cache=False).logits[0, -2].argmax())  # the last is END's own
        if token == END:
            return written
        written += chr(token + 80)
    return written


def test_likelihoods_by_hand():
    model = Fixed({"a": 0.4, "b": 0.1, "c": 0.2, "d": 0.05, ".": 0.25})
    own = item(answer="aaa", paraphrase="b", perturbed=("c", "dd"), person=7)
    [row] = metrics.likelihoods(model, encoder(), [own]).to_dict("records")
    true = (0.4**3 * 0.25) ** (1 / 4)
    paraphrase, wrong = (0.1 * 0.25) ** 0.5, ((0.2 * 0.25) ** 0.5, (0.05**2 * 0.25) ** (1 / 3))
    assert (row["person"], row["task"], row["exact"]) == (7, TEXT, False)
    assert row["probability"] == pytest.approx(true)
    assert row["normalised"] == pytest.approx(true / (true + sum(wrong)))
    assert row["paraphrase"] == pytest.approx(paraphrase)
    assert row["perturbed"] == pytest.approx((wrong[0] * wrong[1]) ** 0.5)
    # the arithmetic mean, which TOFU writes: its code's geometric mean is another number here
    assert row["truth_ratio"] == pytest.approx(sum(wrong) / 2 / paraphrase)
    assert row["truth_ratio"] != pytest.approx(row["perturbed"] / paraphrase, rel=0.05)


def test_an_answer_is_exact_where_all_its_tokens_are_the_likeliest():
    model = Fixed({".": 0.5, "a": 0.3, "b": 0.2})
    table = metrics.likelihoods(model, encoder(), [item(answer=""), item(answer="a")])
    assert table["exact"].tolist() == [True, False]


def test_a_truth_ratio_of_answers_that_became_impossible_is_still_a_number():
    model = Fixed({"a": 1.0, "b": 1e-300, "c": 1e-300, ".": 1.0})
    model.logits[tokens_of("bc")] = -1600.0
    table = metrics.likelihoods(model, encoder(), [item(paraphrase="b", perturbed=("c", "c"))])
    assert table["paraphrase"][0] == 0 and table["truth_ratio"][0] == pytest.approx(1)


@pytest.fixture(params=["llama", "llava", "qwen"])
def told(request):
    """A model, how it is asked, and items of unequal lengths, of pictures where it takes them."""
    make = {"llama": lambda: llama()[1], "llava": llava, "qwen": qwen}[request.param]
    encode = {"llama": encoder(), "llava": with_pixels, "qwen": with_patches}[request.param]
    items = [
        item("a", "xy", "yx", ("p", "qqq")),
        item("bcdefg", "z", "zz", ("r", "s")),
        item("hij", "stu", "s", ("vvvv", "w", "x")),
    ]
    shaded = [item(*list(vars(own).values())[2:6], shade=80 * i) for i, own in enumerate(items)]
    return make(), encode, items if request.param == "llama" else shaded


def test_a_row_does_not_depend_on_its_batch(told):
    model, encode, items = told
    together, alone = (metrics.likelihoods(model, encode, items, batch) for batch in (32, 1))
    pd.testing.assert_frame_equal(together, alone, rtol=1e-4)
    assert together["probability"].nunique() == len(items)


def test_generation_is_greedy_whatever_the_batch(told):
    model, encode, items = told
    wanted = [by_loop(model, encode, own) for own in items]
    assert len(set(wanted)) == len(items)
    for batch in (32, 1):
        assert metrics.greedy_answers(model, encode, items, Letters(), 6, batch) == wanted
    model.generation_config.repetition_penalty = 50.0
    assert metrics.greedy_answers(model, encode, items, Letters(), 6) == wanted


@pytest.mark.parametrize(("make", "encode"), [(llava, with_pixels), (qwen, with_patches)])
def test_the_picture_is_seen(make, encode):
    model, shades = make(), [item("abc", shade=shade) for shade in (0, 120, 255)]
    assert metrics.likelihoods(model, encode, shades)["probability"].nunique() == 3
    assert len(set(metrics.greedy_answers(model, encode, shades, Letters(), 6))) > 1


def test_rouge_is_the_recall_of_the_longest_common_subsequence():
    asked = item(answer="She was born in Quito, Ecuador")
    written = ["in Quito she was once born", "she wins", "Anna was borne in Quito of Ecuador"]
    # of six words: "she was born"; "she"; "was born in Quito Ecuador", for "borne" has the stem of "born"
    found = metrics.rouge_recall([asked] * 3, written)
    assert found == pytest.approx([3 / 6, 1 / 6, 5 / 6])


def test_measured_is_likelihoods_and_rouge():
    _, model = llama()
    [written] = metrics.greedy_answers(model, encoder(), [item("abc")], Letters())
    own = item("abc", answer=written)
    table = metrics.measured(model, encoder(), [own], Letters())
    likely = metrics.likelihoods(model, encoder(), [own])
    assert table["rouge"].tolist() == [1.0]
    pd.testing.assert_frame_equal(table.drop(columns="rouge"), likely)


def table_of(**columns):
    usual = dict(person=[0, 1], task=[CAPTION, CAPTION], rouge=0.5, probability=0.5, normalised=0.5)
    return pd.DataFrame(usual | dict(truth_ratio=0.5, paraphrase=0.5, perturbed=0.25) | columns)


def harmonic(*values):
    return len(values) / sum(1 / value for value in values)


def test_summaries_by_hand():
    table = table_of(
        person=[0, 0, 0, 0, 1, 1], task=[CAPTION, NAME] * 3, rouge=[0.2, 0.4, 0.6, 0.8, 0.1, 0.3],
        probability=[0.1, 0.2] * 3, normalised=[0.3, 0.5, 0.5, 0.9, 0.1, 0.1],
        truth_ratio=[0.2, 2.0, 0.4, 0.5, 0.6, 0.8], paraphrase=[0.2, 0.4, 0.8, 0.5, 0.4, 0.2],
        perturbed=[0.1, 0.1, 0.4, 0.1, 0.2, 0.1],
    )  # fmt: skip
    retain, forget = metrics.summary(table, forget=False), metrics.summary(table, forget=True)
    means = 0.3, 0.5, 0.3, 0.5  # of ROUGE and normalised probability, of captions and of names
    kept, gone = ((0.8 + 0.6 + 0.4) / 3, (0 + 0.5 + 0.2) / 3), ((0.2 + 0.4 + 0.6) / 3, (0.5 + 0.5 + 0.8) / 3)
    assert retain["paper"].estimate == pytest.approx(harmonic(*means, *kept))
    assert forget["paper"].estimate == pytest.approx(harmonic(*means, *gone))
    # as coded: perturbed answers' geometric mean over the task's items, 0.2 and 0.1, over the paraphrase
    captions, names = np.mean([1, 0.25, 0.5]), np.mean([0.25, 0.2, 0.5])
    assert retain["coded"].estimate == pytest.approx(harmonic(0.1, 0.5, 1 - captions, 1 - names))
    assert forget["coded"].estimate == pytest.approx(harmonic(0.1, 0.5, captions, names))


def test_a_summary_is_uncertain_by_its_persons():
    rng = np.random.default_rng(0)
    rouge = np.repeat(rng.uniform(0.2, 0.8, 20), 5)  # five items a person, all alike
    persons = np.repeat(np.arange(20), 5)
    few = metrics.summary(table_of(person=persons, task=NAME, rouge=rouge), False)["paper"]
    many = metrics.summary(table_of(person=np.arange(100), task=NAME, rouge=rouge), False)["paper"]
    assert (few.n, many.n) == (20, 100) and few.estimate == pytest.approx(many.estimate)
    assert few.high - few.low > 1.7 * (many.high - many.low)


def test_forget_quality_by_divergence_lies_between_its_floor_and_1():
    rng = np.random.default_rng(0)
    first, second = rng.lognormal(size=(2, 50))
    assert metrics.forget_quality_js([1, 0, 2, 0], [0, 3, 0, 1]) == pytest.approx(FLOOR)
    assert metrics.forget_quality_js(first, first) == 1
    assert metrics.forget_quality_js(first, second) == pytest.approx(1 - jensenshannon(first, second))
    # SciPy's distance is NaN for nearly half of such pairs
    alike = [metrics.forget_quality_js(values, 10 * values) for values in rng.lognormal(size=(100, 50))]
    assert alike == pytest.approx(np.ones(100))


def test_forget_quality_by_kolmogorov_and_smirnov_is_tiny_where_distributions_differ_and_1_where_not():
    values = np.random.default_rng(0).lognormal(size=100)
    assert metrics.forget_quality_ks(values, values[::-1]) == 1
    assert metrics.forget_quality_ks(values, values + 100) < 1e-50


def test_the_coded_forget_quality_of_a_model_that_forgot_nothing_may_be_1():
    gold = np.random.default_rng(0).lognormal(sigma=0.3, size=100)
    untouched = gold / 20  # prefers the truth 20 times as much on every item
    assert metrics.forget_quality_js(untouched, gold) == pytest.approx(1)
    assert metrics.forget_quality_ks(untouched, gold) < 1e-50
    # and it depends on which item is which, though the distributions are the same
    assert metrics.forget_quality_js(gold[::-1], gold) < 0.9


def test_perturbed_answers_cancel_from_the_coded_forget_quality():
    rng = np.random.default_rng(0)
    paraphrase, perturbed = rng.uniform(1, 5, (2, 30)), rng.uniform(1, 5, (2, 30, 3))  # losses of two models
    coded = [np.exp(wrong.mean() - right) for wrong, right in zip(perturbed, paraphrase, strict=True)]
    assert metrics.forget_quality_js(*np.exp(-paraphrase)) == pytest.approx(metrics.forget_quality_js(*coded))


def test_the_population_attack_tells_what_differs_and_nothing_else():
    rng = np.random.default_rng(0)
    same, other = rng.normal(size=(2, 600))
    assert metrics.population_attack(same, other) == pytest.approx(0.5, abs=0.06)
    for shift in (8, -8, 8e-6):  # higher, lower, and in small units
        scale = 1e-6 if shift == 8e-6 else 1
        assert metrics.population_attack(scale * same, scale * other + shift) > 0.99
    # few that were forgotten among many never seen, told in part: the few count as much as the many
    assert metrics.population_attack(same[:40] + 2, other) == pytest.approx(0.84, abs=0.06)


def test_the_likelihood_ratio_attack_tells_item_by_item():
    rng = np.random.default_rng(0)
    items = rng.normal(scale=50, size=500)  # they differ far more than knowing them does
    having, lacking = items + rng.normal(size=(2, 4, 500))
    assert metrics.likelihood_ratio_attack(having, lacking) == pytest.approx(0.5, abs=0.03)
    signs = rng.choice([-1, 1], 500)  # a trace of either sign, another on each item
    assert metrics.likelihood_ratio_attack(having + 10 * signs, lacking) > 0.99
    assert metrics.population_attack(having[0] + 10 * signs, lacking[0]) < 0.6
    # a trace in the spread alone
    assert (
        metrics.likelihood_ratio_attack(
            items + rng.normal(scale=9, size=(8, 500)), items + rng.normal(size=(8, 500))
        )
        > 0.8
    )


@pytest.mark.parametrize(
    ("having", "lacking"),
    [
        (np.eye(2), np.eye(2)),
        (np.eye(3), np.eye(4)),
        (np.eye(3)[0], np.eye(3)[0]),
        (np.ones((3, 2)), np.eye(3, 2)),
    ],
)
def test_a_likelihood_ratio_that_cannot_be_fitted_is_refused(having, lacking):
    with pytest.raises(ValueError, match=r"the attack needs|does not vary"):
        metrics.likelihood_ratio_attack(having, lacking)
