"""Prompts and answers read as PaliGemma was trained with them."""

import pytest

from backbone import tasks
from backbone.detections import HUGGING_FACE, Box


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (tasks.caption(), "caption en"),
        (tasks.caption("quz"), "caption quz"),
        (tasks.cap("fil"), "cap fil"),
        (tasks.describe("zh"), "describe zh"),
        (tasks.ocr(), "ocr"),
        (tasks.answer("Where is the cow standing?"), "answer en Where is the cow standing?"),
        (tasks.answer("où ?", "fr"), "answer fr où ?"),
        (tasks.answer(" what?"), "answer en  what?"),
        (tasks.question("yes"), "question en yes"),
        (tasks.question("two cats", "de"), "question de two cats"),
        (tasks.detect(["cat", "dog"]), "detect cat ; dog"),
        (tasks.detect(["the penguin on the left"]), "detect the penguin on the left"),
        (tasks.segment(["cat"]), "segment cat"),
        (tasks.segment(["cat", "red cup", "dog"]), "segment cat ; red cup ; dog"),
        (tasks.list_objects(), "answer en What objects are in the image?"),
        (tasks.is_present("cat"), "answer en Is cat in the image?"),
        (tasks.which_present(["cat", "dog"]), "answer en Which of cat, dog are in the image?"),
        (tasks.how_many("cat"), "answer en How many cat?"),
        (tasks.names_answer(["cat", "dog"]), "cat, dog"),
        (tasks.names_answer([]), "none"),
        (tasks.presence_answer(True), "yes"),
        (tasks.presence_answer(False), "no"),
        (tasks.count_answer(12), "12"),
    ],
)
def test_every_task_has_its_words(prompt, expected):
    assert prompt == expected


def test_a_region_is_captioned_by_its_four_locations_in_y_x_order():
    box = Box(x0=0.25, y0=0.0, x1=1.0, y1=0.5)
    assert tasks.caption_region(box) == "caption <loc0000><loc0256><loc0512><loc1023>"
    assert tasks.caption_region(box, HUGGING_FACE) == "caption <loc0000><loc0256><loc0512><loc1023>"


def test_languages_are_those_of_coco35l_and_xm3600():
    assert len(tasks.LANGUAGES) == len(set(tasks.LANGUAGES)) == 36
    assert list(tasks.LANGUAGES) == sorted(tasks.LANGUAGES)


@pytest.mark.parametrize(
    ("lang", "message"),
    [
        ("english", r"unknown language 'english'; did you mean 'en'"),
        ("EN", r"did you mean 'en'"),
        ("xx", r"unknown language 'xx'; expected a code like 'en': ar bn cs .*write the prompt"),
        ("", "unknown language ''"),
    ],
)
@pytest.mark.parametrize("ask", [tasks.caption, tasks.cap, tasks.describe])
def test_an_unknown_language_is_refused_with_the_nearest(ask, lang, message):
    with pytest.raises(ValueError, match=message):
        ask(lang)


@pytest.mark.parametrize("ask", [tasks.detect, tasks.segment, tasks.which_present])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one name"),
        ([""], "got an empty one"),
        (["cat", "  "], "got an empty one"),
        (["cat ; dog"], r"'cat ; dog' holds ';'.* several names"),
        (["a<b"], "holds '<'"),
        (["cat\n"], r"white space around it; use 'cat'"),
        (["a\nb"], r"holds '\\n'"),
        ([" cat"], r"white space around it; use 'cat'"),
        (["cat", "dog", "cat"], "'cat' is asked for twice"),
        ("cat", r"a list of names, got the text 'cat'; use \['cat'\]"),
    ],
)
def test_names_that_would_not_be_read_back_are_refused(ask, names, message):
    with pytest.raises(ValueError, match=message):
        ask(names)


def test_other_empty_and_impossible_values_are_refused():
    with pytest.raises(ValueError, match="the question is empty"):
        tasks.answer(" ")
    with pytest.raises(ValueError, match="the answer is empty"):
        tasks.question("")
    with pytest.raises(ValueError, match="'cup, red' holds a comma"):
        tasks.which_present(["cup, red", "dog"])
    with pytest.raises(ValueError, match="can't be -1 things"):
        tasks.count_answer(-1)
