"""A profile's name and overrides in, one validated and frozen settings object out, with the run's name."""

import contextlib
import difflib
import hashlib
import re
import shlex
import typing
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import AfterValidator, BaseModel, Field, NonNegativeInt, PositiveInt, PrivateAttr

from reasoning_features import paths
from reasoning_features.errors import UserError

PROFILES = Path(__file__).parent / "profiles"
# the paper's list R (its figure 5), and the words that its code looks for as "But" and "Another" alone,
# without a space before them
PAPER_WORDS = frozenset(
    {"alternatively", "hmm", "maybe", "wait", "perhaps", "let me", "therefore", "however", "but", "another"}
)
CAPITALISED = frozenset({"but", "another"})
NAME_LIMIT, RUN_LIMIT = 48, 200  # characters of a value, and of a run's name
# folders in data/ and figures/ that are of no run
TAKEN = {"bench", "real-text", "vocabulary-real"}
# the settings that determine which texts are read, and where in the model
READ = ("site", "layer", "dtype", "corpus", "reasoning_text", "general_text", "solutions_text", "context")
MODELS = ("subject", "contrast", "base")
AUTOENCODERS = (
    *("autoencoder", "autoencoder_relu", "autoencoder_topk", "autoencoder_second", "contrast_autoencoder"),
)
# the settings that name a model, an autoencoder or a folder of results
RESULTS = (
    *("truth", "diffing", "steering", "sae_checks", "steering_safety", "activation_sparsity", "unlearning"),
)
REFUSERS = ("refusers", "refuser_parents", "refuser_autoencoders", "refusal_classifier")
PINNED = (*MODELS, *AUTOENCODERS, "second_subject", "second_autoencoder", *REFUSERS, *RESULTS)

Window = tuple[NonNegativeInt, NonNegativeInt]


def _normalised(words: list[str]) -> list[str]:
    """Words in lower case, with single spaces and straight apostrophes; each once."""
    found = [" ".join(word.lower().replace("’", "'").split()) for word in words]
    if "" in found or (twice := [word for word in found if found.count(word) > 1]):
        raise ValueError(f"the word {twice[0]!r} stands twice" if all(found) else "a word is empty")
    return found


Words = Annotated[list[str], AfterValidator(_normalised)]


def _ascending(numbers: list[float]) -> list[float]:
    """Numbers above 0, each larger than the one before."""
    if not all(before < after for before, after in pairwise([0.0, *numbers])):
        raise ValueError("numbers above 0 are needed, each larger than the one before")
    return numbers


Ascending = Annotated[list[float], AfterValidator(_ascending), Field(min_length=1)]


class TextSource(BaseModel, frozen=True, extra="forbid"):
    """Where texts come from: a dataset of the hub, or local files."""

    dataset: str  # `owner/name` of the hub, with `@revision` to pin it; or a local folder or file
    name: str | None = None  # the dataset's configuration
    split: str = "train"
    column: str = "text"  # holds a text, a conversation (its turns, each with role and content), or token ids
    domain: str | None = None  # the column with each text's domain
    split_column: str | None = None  # says "training", "selection" or "evaluation"; else a row's is drawn


class QuestionSource(TextSource, frozen=True, extra="forbid"):
    """Where questions that a model refuses, or answers, come from; the domain is their category."""

    answer: str | None = None  # the column with what counts as right, its alternatives separated by |


class ProblemSource(BaseModel, frozen=True, extra="forbid"):
    """Where problems with known answers come from; with ``wrong``, a letter is asked for."""

    dataset: str  # as for texts
    name: str | None = None
    split: str = "test"
    problem: str = "problem"  # columns
    answer: str = "answer"
    wrong: list[str] = []  # columns of the wrong choices
    selection: float = Field(default=0.0, ge=0, le=1)  # share of problems kept for choosing features
    split_column: str | None = None  # says "selection" or "evaluation" of each problem, instead of that share


class PersonsStudied(BaseModel, frozen=True, extra="forbid"):
    """How a chat model is taught persons, whom methods of unlearning make it forget."""

    dataset: str | None = None  # CLEAR, as `owner/name@revision` of the hub; or TOFU's authors, in words
    methods: list[str] = Field(min_length=1)
    rate: float = Field(gt=0)  # of learning and of unlearning
    epochs: PositiveInt  # of learning
    steps: list[PositiveInt] = Field(min_length=1)  # of unlearning, numbers that are tried
    layer: NonNegativeInt = 0  # adapters are in the blocks after it; of TOFU alone


class Settings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """All settings of one run, where paths are taken from the repository's root unless absolute."""

    _overrides: dict[str, Any] = PrivateAttr(default_factory=dict)
    _capitalised: frozenset[str] = PrivateAttr(default=frozenset())
    _asked: set[str] = PrivateAttr(default_factory=set)  # of INPUTS, those that were asked for so far

    profile: str  # the profile's name
    subject: str  # the reasoning model: a directory, or `owner/name` of the hub, `@revision` to pin it
    contrast: str | None = None  # the second variant's model, where there is one
    base: str | None = None  # the model before reasoning fine-tuning
    layer: NonNegativeInt  # the hook point is the residual stream after this block, counted from 0
    site: Literal["resid_post", "mlp_out"] = "resid_post"  # or what this block's MLP adds to it
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = Field(default=0, ge=0, lt=2**32)

    # kind of corpora: the organism's documents, the same without their labels, or the sources below
    corpus: Literal["organism", "organism-text", "text"] = "organism"
    reasoning_text: TextSource | None = None  # texts with thinking
    general_text: TextSource | None = None  # texts without
    solutions_text: TextSource | None = None  # what words of thinking are ranked against; or general_text
    training_text: list[TextSource] = []  # what autoencoders are trained on, in equal parts
    base_text: list[TextSource] = []  # the base model's data, for stages of model diffing
    stages_text: list[TextSource] = []  # the reasoning data of stages; or reasoning_text
    planted: bool = False  # whether the words of R were put there by construction
    reasoning_documents: PositiveInt
    general_documents: PositiveInt
    probe_documents: PositiveInt  # fresh ones of a corpus, for probes and the quality of dictionaries
    sample_documents: PositiveInt | None = None  # of each corpus, whose activations are kept; or all
    context: int = Field(default=256, ge=2)  # tokens
    batch_tokens: PositiveInt = 8192  # tokens of one forward pass

    autoencoder: str  # the default autoencoder: a directory, `owner/name@revision:folder` of the hub, or ""
    autoencoder_relu: str | None = None  # the paper's architecture
    autoencoder_topk: str | None = None  # the other architecture
    autoencoder_second: str | None = None  # the default architecture from a second seed
    contrast_autoencoder: str | None = None  # the second variant's autoencoder
    d_sae: PositiveInt  # features
    k: PositiveInt  # active features of the TopK architecture
    l1: float = Field(ge=0)  # coefficient of the ReLU architecture's penalty
    short_training: bool = True  # whether short trainings are part of the notebook
    train_saes: bool = False  # train autoencoders by streaming, instead of loading the ones named above
    layers: list[NonNegativeInt] = []  # other layers that autoencoders are trained at, to compare over depth
    checkpoints: PositiveInt = 5  # of a streamed training, from which it goes on when interrupted
    train_tokens: PositiveInt  # tokens of a training
    train_batch: PositiveInt = 2048  # tokens of one optimiser step
    learning_rate: float = Field(gt=0)

    words: Words = Field(min_length=2)  # the reasoning vocabulary R
    alpha: float = Field(default=0.7, ge=0)  # exponent of the entropy (equation 5)
    window: Window = (2, 3)  # tokens before and after an occurrence
    selected: PositiveInt  # features chosen by ReasonScore
    alphas: list[float] = Field(min_length=1)  # the grid over the score's hyperparameters
    windows: list[Window] = Field(min_length=1)
    selected_grid: list[PositiveInt] = Field(min_length=1)
    blocks: PositiveInt = 100  # of documents, resampled for intervals
    random_vocabularies: PositiveInt = 100
    slot_vocabularies: PositiveInt = 1023

    decisions: PositiveInt = 500  # decision points at which a feature's causal effect is measured
    random_directions: PositiveInt = 500  # random directions that an effect is compared with
    truth: str | None = None  # directory of the shipped models' causal effects, where they were measured
    diffing: str | None = None  # directory of the autoencoders by stage and layer, where they were trained
    examples: PositiveInt = 12  # activating examples of a feature
    pages: PositiveInt = 40  # features with a page of their own
    second_subject: str | None = None  # another reasoning model
    second_autoencoder: str | None = None  # its autoencoder
    gammas: list[float] = Field(default=[-0.4, -0.2, 0.2, 0.4], min_length=1)  # strengths in units of f_max
    interpreted: PositiveInt = 20  # features interpreted by what steering them changes
    interpretation_problems: PositiveInt = 30  # problems a feature and strength (the paper's 30)
    candidates: PositiveInt = 10  # steering vectors tried of each class
    search_vocabularies: PositiveInt = 8  # of each kind that ReasonScore is given instead of R
    strengths: list[float] = Field(default=[-0.8, -0.4, -0.2, -0.1, 0.1, 0.2, 0.4, 0.8], min_length=1)
    screening_problems: PositiveInt = 60  # on which every candidate is tried at every strength
    rescreened: PositiveInt = 5  # trials of a class that are tried again, on other problems
    rescreening_problems: PositiveInt = 240
    steering_problems: PositiveInt = 4000  # fresh problems that the winners are put to
    steering: str | None = None  # directory of the shipped models' steering studies
    sae_checks: str | None = None  # directory of dictionaries of other kinds, trained and frozen
    edited_pairs: PositiveInt = 300  # pairs of decisions of which one attribute is swapped
    judged_latents: PositiveInt = 200  # latents that exact rules are found for
    checked_steps: PositiveInt = 500  # steps of trainings on synthetic data that are done again
    evaluation_start: NonNegativeInt = 0  # the first evaluation problem that winners are put to
    shown_start: NonNegativeInt = 0  # the first of the side experiments
    problems: dict[str, ProblemSource] = {}  # benchmarks, by name
    system_prompt: str | None = None  # put before every problem of a benchmark
    max_new_tokens: PositiveInt = 32_768  # the longest answer to a problem of a benchmark
    samples: PositiveInt = 1  # answers to each problem of a benchmark
    engine: Literal["rows", "continuous"] = "rows"  # how long answers are batched
    full: bool = True  # the matched-budget search and what follows from it; else published features alone
    published: dict[str, list[int]] = {}  # features that a paper names, by what it says of them
    published_problems: PositiveInt = 30  # problems of each benchmark that they are steered on
    text_problems: PositiveInt = 24  # prompts on which it is seen what steering does to text
    text_tokens: PositiveInt = 128  # the longest of these texts
    gamma: float = 2.0  # the strength they are steered at, in units of their largest activation
    refusers: list[str] = []  # models that refuse some questions
    refuser_parents: list[str] = []  # the same models without that rule, where there are
    refuser_autoencoders: str | None = None  # the folder of theirs, as name-layer; or `autoencoder` is theirs
    refused_questions: QuestionSource | None = None  # what they refuse (the organism has its own)
    allowed_questions: QuestionSource | None = None  # what they answer
    refused_prompts: PositiveInt = 100  # refused questions that numbers are reported of
    refused_shown: PositiveInt = 100  # of these, at every layer and strength
    allowed_prompts: PositiveInt = 100
    refusal_tokens: PositiveInt = 128  # the longest answer to them
    multiples: Ascending = [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]  # c, in mean norms of the stream
    vectors: PositiveInt = 1000  # of each kind that is added
    repeated_means: PositiveInt = 8  # means of each number of vectors, for each question they succeed on
    steering_safety: str | None = None  # directory of what steering does to their refusals
    sparsity_texts: PositiveInt = 16  # texts on which pruned models are measured
    sparsity_calibration: PositiveInt = 256  # those that statistics and corrections are from
    sparsity_documents: PositiveInt = 300  # of reasoning text, on which a pruned model's features are read
    sparsity_problems: NonNegativeInt = 0  # problems that pruned models solve
    zero_shot: list[str] = []  # tasks that they are asked: ARC-easy, PIQA, WinoGrande, LAMBADA
    harness: list[str] = []  # tasks that lm-evaluation-harness asks them, by its names
    zero_shot_items: PositiveInt = 100  # items of each task
    activation_sparsity: str | None = None  # directory of what pruning does to the model
    unlearning: str | None = None  # directory of a model that knows persons, and what unlearning does to it
    persons: PersonsStudied | None = None  # a chat model's, where the persons are not the organism's
    refusal_classifier: str | None = None  # a model that tells refusals, beside the rules
    judge_url: str | None = None  # an OpenAI-compatible endpoint that describes features and judges answers
    judge_model: str | None = None  # the model asked there

    @property
    def run(self) -> str:
        """The run's name: the profile, then each override as ``+name=value``, sorted by name."""
        name = "+".join([self.profile, *(f"{n}={_slug(v)}" for n, v in sorted(self._overrides.items()))])
        return name if len(name) <= RUN_LIMIT else f"{name[: RUN_LIMIT // 2]}-{_digest(name)}"

    def __getattribute__(self, name: str) -> Any:
        if name in INPUTS:
            self._asked.add(name)
        return super().__getattribute__(name)

    def model_post_init(self, _: Any) -> None:
        self._capitalised = CAPITALISED if set(self.words) == PAPER_WORDS else frozenset()

    @property
    def capitalised(self) -> frozenset[str]:
        """Words that count where they are capitalised and no space stands before them: in the paper's list
        alone, whichever of its words occur.
        """
        return self._capitalised

    @property
    def has_stages(self) -> bool:
        """Whether model diffing has stages: a base model, and autoencoders that are shipped or trained."""
        return bool(self.base and (self.diffing or self.train_saes))

    @property
    def unread(self) -> set[str]:
        """Settings that name models or texts which no notebook of this profile reads."""
        stages_trained = self.has_stages and self.train_saes
        read = {"base": self.has_stages, "training_text": self.train_saes}
        read |= {"base_text": stages_trained, "stages_text": stages_trained}
        return {name for name, is_read in read.items() if not is_read}

    def check_made_with(
        self, made_with: Mapping[str, Any], names: Sequence[str], place: Path, folder: str
    ) -> None:
        """UserError: what is stored in ``place`` was made with other values of the settings ``names``;
        ``folder`` is the setting that names where such results lie.
        """
        wanted = self.model_dump(mode="json")
        if differs := [name for name in names if made_with.get(name) != wanted[name]]:
            was = f"{differs[0]} = {made_with.get(differs[0])}, not {wanted[differs[0]]}"
            advice = f"take that, or let a profile of your own name another folder as {folder} and study it"
            raise UserError(f"{paths.relative(place)} was made with {was}: {advice}.")

    def named(self, name: str) -> list[Any]:
        """The models (their references) or the sources that a setting names; none where it is empty. That
        does not count as asking for them.
        """
        value = vars(self)[name] or []
        value = list(value.values()) if isinstance(value, dict) else value
        return value if isinstance(value, list) else [value]


# the settings that name data sets
TEXTS = tuple(name for name, field in Settings.model_fields.items() if "Source" in str(field.annotation))
INPUTS = frozenset({*PINNED, *TEXTS})


def load_settings(profile: str, **overrides: Any) -> Settings:
    """Settings of a shipped profile, or of a YAML file that may say ``extends:``, with overrides.

    An override that equals the profile's value does not change the run's name. UserError where a profile, a
    field or a value cannot be.
    """
    values = _read_profile(profile)
    plain = _validated(profile, values)
    settings = _validated(profile, values | overrides)
    usual, now = vars(plain), vars(settings)  # to compare a value is not to ask for what it names
    changed = [name for name in overrides if name != "device" and now[name] != usual[name]]
    settings._overrides = {name: now[name] for name in changed}
    return settings


def notebook_settings(names: Mapping[str, Any]) -> Settings:
    """Settings from a notebook's ``globals()``, after its parameters cell (``name: type = value``).

    A name that still has the organism's value stands for the profile's own. ``changes`` holds settings
    without a line of their own.
    """
    lines = set(names.get("__annotations__", names)) & set(Settings.model_fields) - {"profile"}
    shown = _read_profile("organism")
    plain = _validated("organism", shown)
    cell = _validated("organism", shown | {name: names[name] for name in lines})
    changed = {name: names[name] for name in lines if getattr(cell, name) != getattr(plain, name)}
    return load_settings(names["profile"], **(changed | names["changes"]))


def shipped_profiles() -> list[str]:
    """The names of the profiles that come with the package."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def _validated(profile: str, values: dict[str, Any]) -> Settings:
    try:
        return Settings(**values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"There is no setting {place!r}: profiles/organism.yaml has them all.") from error
        raise UserError(f"Setting {place!r} of profile {profile}: {first['msg']}.") from error


def _read_profile(profile: str) -> dict[str, Any]:
    shipped = PROFILES / f"{profile}.yaml"
    path = shipped if profile in shipped_profiles() else paths.resolve(profile)
    if path.suffix not in {".yaml", ".yml"} or not path.is_file():
        known = ", ".join(shipped_profiles())
        raise UserError(f"There is no profile {profile!r}: give one of {known}, or the path of a YAML file.")
    if path is not shipped and path.stem.lower() in {*shipped_profiles(), *TAKEN}:
        raise UserError(f"The profile file {path.name} has the name of a shipped folder: rename it.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: no UTF-8, or no date
        values = None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        form = "YAML in UTF-8 with one setting a line, as name: value"
        raise UserError(f"The profile {path.name} is not {form}.")
    parent = values.pop("extends", None)
    if parent is not None and parent not in shipped_profiles():
        raise UserError(f"The profile {path.name} extends {parent!r}, which is not a shipped profile.")
    inherited = _read_profile(parent) if parent else {}
    return inherited | values | {"profile": path.stem if path is shipped else _profile_name(path)}


def _profile_name(path: Path) -> str:
    """A name that no other file has: of a file in the repository's root its own, of others with a hash."""
    place = path.resolve()
    inside = place.is_relative_to(paths.root())
    return _slug((place.relative_to(paths.root()) if inside else place).as_posix().removesuffix(".yaml"))


def read_overrides(text: str) -> dict[str, Any]:
    """Settings from ``alpha=0.3 window='[1,2]'``, as a shell reads words and YAML reads values."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"PARAMS={text!r} cannot be read ({error}): close the quotes.") from error
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"PARAMS has {word!r}, which is not of the form name=value.")
        if name in ("profile", "device"):
            raise UserError(f"PARAMS must not set {name}: give {name.upper()}={value} to make instead.")
        if name not in Settings.model_fields:
            near = difflib.get_close_matches(name, Settings.model_fields) or ["profiles/organism.yaml"]
            raise UserError(f"There is no setting {name!r} for PARAMS: see {', '.join(near)}.")
        found[name] = _typed(name, value)
    return found


def _typed(name: str, text: str) -> Any:
    """What text stands for under a setting's type: as YAML reads it, or its words alone (``[no, yes]``), or
    as it stands.
    """
    kind: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(typing.get_type_hints(Settings)[name])
    given: Any = text
    for loader in (yaml.SafeLoader, yaml.BaseLoader):
        with contextlib.suppress(yaml.YAMLError, ValueError):
            value = yaml.load(text, loader)
            given = value if isinstance(value, list | dict) else given  # an error is then of the item
            kind.validate_python(value)
            return value
    return given


def _slug(value: Any) -> str:
    """A value as part of a folder's name; one that is long or has other characters ends in its hash."""
    text = _text(value)
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", text.rsplit("/", 1)[-1]).strip("_")
    if safe == text and len(text) <= NAME_LIMIT:
        return text
    return f"{safe[: NAME_LIMIT // 2]}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _text(value: Any) -> str:
    """A value as text, which no other value of its type has."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        nested = any(isinstance(item, Sequence) and not isinstance(item, str) for item in value)
        parts = [repr(each) if isinstance(each, str) and {*each} & {*"-_"} else _text(each) for each in value]
        return ("_" if nested else "-").join(parts)
    return str(value)
