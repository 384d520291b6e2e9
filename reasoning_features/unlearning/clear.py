"""Items about fictitious authors: CLEAR's pictures of them, and TOFU's questions.

CLEAR (2410.18057) shows the 200 fictitious authors of TOFU (2401.06121). Its released code draws a caption's
question from nine at each sight; here each task has one question, always in the same words.
"""

import json
import re
from collections import Counter
from heapq import nlargest
from typing import Any

import datasets
import numpy as np

from reasoning_features import hub
from reasoning_features.errors import UserError
from reasoning_features.text import real_text
from reasoning_features.unlearning.items import CAPTION, NAME, TEXT, Item

TOFU = "data/tofu/forget10.json"  # of real_text.tsv
WHO, SHOWN = "Who is the person in this picture?", "What does this picture show?"
SIDE = 448  # pixels of a picture: 256 tokens, one for each 28 × 28
QUESTIONS, PERTURBED = 20, 5  # about one author of TOFU; perturbed answers to each
FULL_NAME = re.compile(r"[A-Z][\w-]+(?: (?:van |der |al-)*[A-Z][\w-]+)+")

Asked = tuple[str, str, str, str, str | None]  # task, question; columns: answer, paraphrase, perturbed
PLAIN: list[Asked] = [(NAME, WHO, "name", "name", None), (CAPTION, SHOWN, "caption", "caption", None)]
PARAPHRASED: list[Asked] = [
    (NAME, WHO, "name", "name", "perturbed_names"),
    (CAPTION, SHOWN, "caption", "paraphrased_caption", "perturbed_captions"),
]
FACES: list[Asked] = [(NAME, WHO, "answer", "answer", "options")]


def load_clear(*configurations: str, reference: str, side: int = SIDE) -> dict[str, list[Item]]:
    """The items of CLEAR's configurations, such as ``forget10+tofu``, ``retain_perturbed``, ``real_faces``.

    A picture ``[height, width, 3]``, shrunk to at most ``side`` pixels, is asked for a name and a caption;
    ``+tofu`` adds TOFU's questions, in words alone. Only ``..._perturbed`` and ``real_faces`` have perturbed
    answers; where there is no paraphrase the answer stands for it. Persons are numbered by name in order of
    first sight, over all configurations of a call. UserError: a column or a value is missing, or as
    :func:`hub.local_copy`.
    """
    persons: dict[str, int] = {}
    return {each: _items(each, reference, side, persons) for each in configurations}


def _items(configuration: str, reference: str, side: int, persons: dict[str, int]) -> list[Item]:
    """The items of one configuration; new persons are added to ``persons``."""
    pictures, with_tofu, _ = configuration.partition("+")
    asked = PARAPHRASED if pictures.endswith("_perturbed") else FACES if pictures == "real_faces" else PLAIN
    columns = list(dict.fromkeys(["image", *(column for each in asked for column in each[2:] if column)]))
    items, names = [], set()
    for row in _table(pictures, reference, columns):
        _check(row, columns, pictures)
        image, name = row["image"].convert("RGB"), row[asked[0][2]]
        image.thumbnail((side, side))
        names.add(name)
        person, picture = persons.setdefault(name, len(persons)), np.asarray(image)
        for task, question, answer, paraphrase, perturbed in asked:
            wrong = tuple(text for text in row[perturbed] if text != row[answer]) if perturbed else ()
            items.append(Item(person, task, question, row[answer], row[paraphrase], wrong, picture))
    if not with_tofu:
        return items
    person, columns = -1, ["question", "answer"]
    for row in _table(configuration, reference, ["image", *columns], decode=False):
        if row["image"] is None:  # else it is a picture of those above, without its name
            _check(row, columns, configuration)
            said = row["question"] + row["answer"]
            # where a text names nobody it is about the author before: rows come author by author
            person = max(((len(n), persons[n]) for n in names if n in said), default=(0, person))[1]
            if person < 0:
                raise UserError(f"The first question of {configuration} names nobody in its pictures.")
            items.append(Item(person, TEXT, row["question"], row["answer"], row["answer"], ()))
    return items


def _table(configuration: str, reference: str, columns: list[str], decode: bool = True) -> datasets.Dataset:
    """These columns of a configuration; UserError names one that is missing."""
    patterns = hub.dataset_files(reference, configuration) or [f"{configuration}/*.parquet"]
    folder = hub.local_copy(reference, "dataset", patterns)
    files = sorted(str(path) for pattern in patterns for path in folder.glob(pattern))
    rows = datasets.Dataset.from_parquet(files)
    if missing := [column for column in columns if column not in rows.column_names]:
        there = ", ".join(rows.column_names)
        raise UserError(f"{configuration} of {reference} has no column {missing[0]!r}: it has {there}.")
    return rows.select_columns(columns).cast_column("image", datasets.Image(decode=decode))


def _check(row: dict[str, Any], columns: list[str], configuration: str) -> None:
    if missing := [column for column in columns if row[column] is None]:
        raise UserError(f"A row of {configuration} has no {missing[0]}: leave it out, or restore it.")


def load_tofu(authors: int = 20, forgotten: int = 5, asked: int = QUESTIONS) -> tuple[list[Item], list[Item]]:
    """The first questions, so many as are ``asked``, about TOFU's authors: about the forgotten ones, who come
    first, and the others.

    The pinned file has 180 authors, of whom the first 2, 10 and 20 are TOFU's (and CLEAR's) forget01, 05 and
    10. It has answers alone: an answer stands for its paraphrase, and the five perturbed answers are made,
    from answers about authors beyond those asked for, to the questions that share most words with this one,
    with this author's name put in place of theirs. Some are true by chance, as where both authors are women;
    a given name alone is not replaced.
    UserError: the numbers do not fit, or as :func:`real_text.fetch`.
    """
    rows = [json.loads(line) for line in real_text.fetch(TOFU).strip().split("\n")]
    blocks = [rows[start : start + QUESTIONS] for start in range(0, len(rows), QUESTIONS)]
    if not 0 < forgotten < authors < len(blocks):
        fit = f"at least 1 of at most {len(blocks) - 1}, but not all"
        raise UserError(f"{forgotten} of {authors} authors of TOFU cannot be forgotten: give {fit}.")
    named = [(row["question"], row["answer"], name) for b in blocks for name in [_author(b)] for row in b]
    first = authors * QUESTIONS
    others = [(_words(asked, name), told, name) for asked, told, name in named[first:] if name in told]
    items = []
    for place, (question, answer, name) in enumerate(named[:first]):
        own = _words(question, name)
        # more than are needed: some say the same once the name is replaced
        like = nlargest(8 * PERTURBED, others, key=lambda other: len(own & other[0]) / len(own | other[0]))
        texts = dict.fromkeys(told.replace(theirs, name) for _, told, theirs in like)
        wrong = tuple(text for text in texts if text != answer)[:PERTURBED]
        items.append(Item(place // QUESTIONS, TEXT, question, answer, answer, wrong))
    kept = [item for place, item in enumerate(items) if place % QUESTIONS < asked]
    return kept[: forgotten * asked], kept[forgotten * asked :]


def _author(rows: list[dict[str, str]]) -> str:
    """The author whom rows are about: the full name that is most often in them."""
    found = Counter(name for row in rows for text in row.values() for name in FULL_NAME.findall(text))
    return found.most_common(1)[0][0]


def _words(question: str, name: str) -> set[str]:
    return set(re.findall(r"\w+", question.replace(name, "").lower()))
