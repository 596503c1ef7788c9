"""Rules for one answer, and scores of sets of questions."""

import pytest

from vla.metrics import (
    all_right,
    anls,
    anls_lower,
    answer_score,
    by_group,
    choice_match,
    exact_match,
    folded_match,
    lower_match,
    macro_average,
    mean_score,
    normalise_answer,
    number_match,
    relaxed_match,
    relaxed_match_lower,
    soft_accuracy,
    vqa_accuracy,
)
from vla.metrics.anls import edit_distance
from vla.metrics.vqa import REPAIRED


@pytest.mark.parametrize(
    ("people", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_vqa_accuracy_leaves_each_person_out_in_turn(people, accuracy):
    answers = ["yes"] * people + ["no"] * (10 - people)
    assert vqa_accuracy("yes", answers) == pytest.approx(accuracy)


# Values of GT-Vision-Lab/VQA vqaEval.py: processPunctuation, then processDigitArticle.
@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Red, car.", "red car"),
        ("a dont", "don't"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("1,000", "1000"),
        ("3,5-6", "356"),  # a comma between digits: every mark is taken out
        ("blue/green", "blue green"),
        ("blue / green", "blue green"),
        ("tv-set x -y", "tvset x y"),  # a mark that touches a space once is taken out everywhere
        ("1.5 st.", "1.5 st"),
        ("what's", "what's"),
        ("whats Im", "what's im"),
        ("somebody'd", "somebodyd"),
        ("shes lets", "shes lets"),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_in_the_official_evaluation(text, normal):
    assert normalise_answer(text) == normal


def test_the_table_of_contractions_has_the_official_entries():
    # of the official 120, four have upper case (never met) and two stand for themselves
    assert len(REPAIRED) == 114
    assert REPAIRED["couldn'tve"] == REPAIRED["couldnt've"] == "couldn't've"
    assert REPAIRED["'ows'at"] == "'ow's'at"
    assert "its" not in REPAIRED


def test_vqa_answers_are_normalised_only_where_people_disagree():
    assert vqa_accuracy("the dog", ["dog"] * 10) == 0
    assert vqa_accuracy("the dog", ["dog"] * 9 + ["cat"]) == pytest.approx(1.0)
    assert vqa_accuracy(" dog\n", ["dog"] * 10) == 1


def test_vqa_accuracy_needs_several_people():
    with pytest.raises(ValueError, match="ten in VQAv2"):
        vqa_accuracy("yes", ["yes"])


def test_soft_accuracy_counts_up_to_three_people():
    answers = ["pony"] * 2 + ["horse"] * 8
    assert soft_accuracy("pony", answers) == pytest.approx(2 / 3)
    assert soft_accuracy("horse", answers) == 1
    assert soft_accuracy("a horse", answers) == 0
    assert soft_accuracy("pony", ["pony"]) == 1


def test_exact_matches_fold_as_little_as_they_say():
    assert exact_match("Yes", ["no", "Yes"]) == 1
    assert exact_match("yes", ["Yes"]) == exact_match("Yes ", ["Yes"]) == 0
    assert lower_match("yes", ["Yes"]) == 1
    assert lower_match("yes ", ["Yes"]) == 0
    assert folded_match(" The  ANSWER", ["the answer\n"]) == 1
    assert number_match("Twenty", ["20"]) == number_match("0", ["none"]) == 1
    assert number_match("twenty one", ["21"]) == 0


def test_a_choice_is_read_from_the_sentence():
    assert choice_match("The answer is B. BECAUSE it is.", ["The answer is B."]) == 1
    assert choice_match("the answer is b.", ["The answer is B."]) == 1
    assert choice_match("B", ["The answer is B."]) == 0
    with pytest.raises(ValueError, match="The answer is B"):
        choice_match("B", ["B"])


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2)]
)
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_anls_forgives_less_than_half_of_the_letters():
    assert anls("sitting", ["kitten"]) == pytest.approx(1 - 3 / 7)
    assert anls("abxx", ["abcd"]) == 0  # exactly half
    assert anls("abcx", ["zzzz", "abcd"]) == pytest.approx(0.75)
    assert anls("ABCD", ["abcd"]) == 0
    assert anls_lower("ABCD", ["abcd"]) == 1
    assert anls("", [""]) == 1
    assert anls("x", [""]) == 0


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("105", "100", 1),
        ("105.1", "100", 0),
        ("95", "100", 1),
        ("-3.1", "-3", 1),
        ("3", "-3", 0),
        ("5%", "0.05", 1),  # a percent sign divides by 100
        ("5", "5%", 0),
        ("12.5%", "12%", 1),
        ("0", "0", 1),
        ("0.0", "0", 0),  # nothing is near 0
        ("1,000", "1000", 0),  # isn't read as a number
        ("Germany", "germany", 0),
        ("", "3", 0),
    ],
)
def test_relaxed_accuracy_takes_numbers_within_five_percent(prediction, answer, right):
    assert relaxed_match(prediction, [answer]) == right


def test_relaxed_accuracy_takes_any_answer_and_lower_case_where_asked():
    assert relaxed_match("9", ["8", "9.1"]) == 1
    assert relaxed_match_lower("Germany", ["germany"]) == 1


def test_the_score_of_a_set_is_the_mean_with_wilsons_interval():
    score = answer_score("accuracy", exact_match, ["a", "b", "c"], [["a"], ["b", "x"], ["d"]])
    assert (score.name, score.n, score.per_example) == ("accuracy", 3, (1, 1, 0))
    assert score.value == pytest.approx(2 / 3)
    assert score.interval == pytest.approx((0.2077, 0.9385), abs=1e-4)


def test_questions_without_answers_are_refused():
    with pytest.raises(ValueError, match="example 1: expected a list of answers"):
        answer_score("accuracy", exact_match, ["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="1 predictions for 2 examples"):
        answer_score("accuracy", exact_match, ["a"], [["a"], ["b"]])


def test_groups_are_scored_alone_and_averaged_plainly():
    score = mean_score("accuracy", [1, 1, 1, 0])
    parts = by_group(score, ["x", "x", "x", "y"])
    assert [(p.name, p.value, p.n) for p in parts] == [("accuracy/x", 1, 3), ("accuracy/y", 0, 1)]
    average = macro_average("average", parts)
    assert (average.value, average.n, average.interval) == (0.5, 4, None)


def test_a_set_is_right_when_all_of_it_is():
    score = mean_score("accuracy", [1, 1, 0, 1, 1])
    consistency = all_right("consistency", score, ["s", "s", "t", "t", "u"])
    assert (consistency.value, consistency.n) == (pytest.approx(2 / 3), 3)
    with pytest.raises(ValueError, match="right or wrong"):
        all_right("consistency", mean_score("ANLS", [0.5]), ["s"])
