"""From a rule for one answer to the score of a set of questions."""

from collections.abc import Callable, Sequence

from vla.metrics.score import Score, check_pairs, mean_score

Rule = Callable[[str, Sequence[str]], float]  # prediction, accepted answers → [0, 1]


def answer_score(
    name: str, rule: Rule, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> Score:
    """The mean of `rule` over all questions, e.g. `answer_score("ANLS", anls_lower, …)`.

    references: the accepted answers of each question, at least one. Raises ValueError for a
    question without any, and where the numbers of predictions and questions differ.
    """
    check_pairs(predictions, references)
    for i, answers in enumerate(references):
        if not answers or isinstance(answers, str):
            raise ValueError(f"example {i}: expected a list of answers, got {answers!r}")
    pairs = zip(predictions, references, strict=True)
    return mean_score(name, [rule(prediction, answers) for prediction, answers in pairs])
