"""Answers that are right when they are the same text: strictly, folded, as numbers, as a choice.

Each rule takes a prediction and the accepted answers and gives 1.0 or 0.0. Sources: big_vision
`evaluators/proj/paligemma/transfers/` `vqa.py` ("acc_any"), `pope.py`, `tallyqa.py`,
`science_qa.py`. None of them strips or folds anything unless said.
"""

import re
from collections.abc import Sequence

WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty
""".split()  # noqa: SIM905
NUMBERS = {word: str(i) for i, word in enumerate(WORDS)} | {"none": "0"}


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Whether `prediction` is one of `answers`, character by character (GQA, AI2D, NLVR2)."""
    return float(prediction in answers)


def lower_match(prediction: str, answers: Sequence[str]) -> float:
    """The same, lower-cased (OCR-VQA, POPE, RSVQA: `to_lower=True`)."""
    return exact_match(prediction.lower(), [a.lower() for a in answers])


def folded_match(prediction: str, answers: Sequence[str]) -> float:
    """The same, case-folded and with runs of white space as one space, none around."""
    return exact_match(_fold(prediction), [_fold(a) for a in answers])


def number_match(prediction: str, answers: Sequence[str]) -> float:
    """The same, a number word from "zero" to "twenty", or "none", standing for its digits
    (TallyQA, CountBenchQA).
    """
    return exact_match(_digits(prediction), [_digits(a) for a in answers])


def choice_match(prediction: str, answers: Sequence[str]) -> float:
    """Whether both say "the answer is X." with the same letter, in any case, and anything after
    (ScienceQA). A prediction of another form is wrong; unlike in big_vision it is so even where the
    answer's form is another one too, which is a fault of the data: ValueError.
    """
    letters = [_choice(a) for a in answers]
    if None in letters:
        raise ValueError(f'expected answers such as "The answer is B.", got {list(answers)}')
    return float(_choice(prediction) in letters)


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())


def _digits(text: str) -> str:
    return NUMBERS.get(text.lower(), text)


def _choice(text: str) -> str | None:
    found = re.match(r"the answer is ([a-z])\.", text.lower())
    return found and found[1]
