"""VQA accuracy: an answer is as right as people agree with it."""

import re
from collections.abc import Sequence

from vla.metrics.exact import NUMBERS, exact_match

ENOUGH = 3  # as many people giving an answer make it fully right

ARTICLES = {"a", "an", "the"}
DIGITS = {word: digits for word, digits in NUMBERS.items() if int(digits) <= 10}
PUNCTUATION = ';/[]"{}()=+\\_->@`,?!<'

# A word that misses one apostrophe of these gets it back.
CONTRACTIONS = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't
    hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am
    mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't shan't she'd've
    should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
""".split()  # noqa: SIM905
REPAIRED = {
    form[:i] + form[i + 1 :]: form
    for form in CONTRACTIONS
    for i, letter in enumerate(form)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # turned round in the official table too


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy in [0, 1] (VQAv2, TextVQA, VizWiz): the mean over leaving out each answer in
    turn of min(1, how many of the others are equal / 3).

    White space is tidied; where people disagree, prediction and answers are also normalised with
    `normalise_answer`, and only then. answers: people's, ten in VQAv2, at least two.
    Source: GT-Vision-Lab/VQA `vqaEval.py`, and big_vision `vqav2.py`. TextVQA's own evaluation
    normalises with another table; like big_vision, this doesn't.
    """
    if len(answers) < 2 or isinstance(answers, str):
        raise ValueError(
            f"expected several people's answers, ten in VQAv2, got {answers!r}; "
            "for a single answer use an exact match"
        )
    prediction, answers = _tidy(prediction), [_tidy(a) for a in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalise_answer(prediction), [normalise_answer(a) for a in answers]
    equal = [a == prediction for a in answers]
    return sum(min(1.0, (sum(equal) - own) / ENOUGH) for own in equal) / len(equal)


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """min(1, how many of `answers` are equal / 3), in [0, 1], nothing left out and nothing
    normalised (OKVQA, A-OKVQA). With a single answer: whether it is equal.

    Source: allenai/aokvqa `eval_predictions.py`, big_vision `vqa.py`.
    """
    if len(answers) == 1:
        return exact_match(prediction, answers)
    return min(1.0, sum(a == prediction for a in answers) / ENOUGH)


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation and articles, number words up to ten as digits, contractions
    with their apostrophes.

    Source: `processPunctuation` and `processDigitArticle` of GT-Vision-Lab/VQA `vqaEval.py`, with
    its peculiarities: a mark that touches a space anywhere, or any mark where a comma stands
    between two digits, is taken out; otherwise it becomes a space. A period stays only before a
    digit. Ours differs beyond 32 periods, where the original stops.
    """
    comma = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        apart = comma or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if apart else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned)
    words = (DIGITS.get(word, word) for word in cleaned.lower().split())
    return " ".join(REPAIRED.get(word, word) for word in words if word not in ARTICLES)


def _tidy(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
