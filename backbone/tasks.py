"""The prompts that PaliGemma was trained with, and the answers that go with them.

    caption en                     a caption like COCO's          cap en        as on the web, raw
    describe en                    a longer caption               ocr           all text, row by row
    answer en {question}           the answer                     question en {answer}
    detect cat ; dog               boxes, see `backbone.detections`
    segment cat ; dog              boxes and mask codes
    caption <loc>×4                what is in this box

Sources: PaliGemma (arXiv 2407.07726, section 3.2.5) and the model card's list of prompts. A prompt
is text without the newline that ends it, which `Tokenizer.prefix` adds as a token of its own.
The pretrained models know all of these; the "mix" models answer free questions too.
"""

import difflib
from collections.abc import Sequence

from backbone.detections import BIG_VISION, SEPARATOR, Box, check_name

# The 35 languages of COCO-35L and the one that XM3600 adds (big_vision, transfers/coco35l.py). The
# web captions of pretraining cover over 100, of which no list is published.
# fmt: off
LANGUAGES = (
    "ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr",
    "he", "hi", "hr", "hu", "id", "it", "ja", "ko", "mi", "nl", "no", "pl",
    "pt", "quz", "ro", "ru", "sv", "sw", "te", "th", "tr", "uk", "vi", "zh",
)
# fmt: on


def caption(lang: str = "en") -> str:
    """Asks for a short caption in the style of COCO. Raises ValueError for an unknown language."""
    return f"caption {check_language(lang)}"


def cap(lang: str = "en") -> str:
    """Asks for the raw text that a picture like this has on the web."""
    return f"cap {check_language(lang)}"


def describe(lang: str = "en") -> str:
    """Asks for a longer caption."""
    return f"describe {check_language(lang)}"


def ocr() -> str:
    """Asks for all text in the picture, in raster order."""
    return "ocr"


def answer(question: str, lang: str = "en") -> str:
    """Asks a question; `lang` is the language of the answer.

    The question is used as it stands, white space included: a few of PaliGemma's own transfers were
    trained with two spaces before it.
    """
    return f"answer {check_language(lang)} {_some(question, 'question')}"


def question(answer: str, lang: str = "en") -> str:
    """Asks for a question in `lang` that has this (English) answer."""
    return f"question {check_language(lang)} {_some(answer, 'answer')}"


def detect(names: Sequence[str]) -> str:
    """Asks for the boxes of these things.

    Raises ValueError for no names, one twice, or one the grammar can't carry (`check_name`).
    """
    return f"detect {SEPARATOR.join(check_names(names))}"


def segment(names: Sequence[str]) -> str:
    """Asks for the boxes and masks of these things; raises as `detect` does."""
    return f"segment {SEPARATOR.join(check_names(names))}"


def caption_region(box: Box, scale: int = BIG_VISION) -> str:
    """Asks what is in `box`; `scale` as in `backbone.detections`."""
    return f"caption {box.text(scale)}"


# Questions that were generated from OpenImages' labels for pretraining. Their wording is published,
# that of the answers is not: ours are the plain ones.


def list_objects() -> str:
    """Asks for the names of all things; answered by `names_answer`."""
    return answer("What objects are in the image?")


def is_present(name: str) -> str:
    """Asks whether there is such a thing; answered by `presence_answer`."""
    return answer(f"Is {check_name(name)} in the image?")


def which_present(names: Sequence[str]) -> str:
    """Asks which of these things there are; answered by `names_answer`.

    Raises ValueError as `detect` does, and for a comma in a name, which separates names here.
    """
    return answer(f"Which of {_listed(names)} are in the image?")


def how_many(name: str) -> str:
    """Asks for the number of such things; answered by `count_answer`."""
    return answer(f"How many {check_name(name)}?")


def names_answer(names: Sequence[str]) -> str:
    """ "cat, dog", or "none"."""
    return _listed(names) if names else "none"


def presence_answer(present: bool) -> str:
    """ "yes" or "no"."""
    return "yes" if present else "no"


def count_answer(count: int) -> str:
    """The number in digits. Raises ValueError for a negative one."""
    if count < 0:
        raise ValueError(f"there can't be {count} things; expected 0 or more")
    return str(count)


def check_language(lang: str) -> str:
    """`lang` itself, if it is one of `LANGUAGES`; else ValueError with the nearest ones."""
    if lang in LANGUAGES:
        return lang
    near = difflib.get_close_matches(lang.lower()[:3], LANGUAGES, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(
        f"unknown language {lang!r}; {hint}expected a code like 'en': {' '.join(LANGUAGES)}. "
        "For another one write the prompt yourself"
    )


def check_names(names: Sequence[str]) -> list[str]:
    """The names as a list, each of which `check_name` accepts, at least one, none twice."""
    if isinstance(names, str):
        raise ValueError(f"expected a list of names, got the text {names!r}; use [{names!r}]")
    if not names:
        raise ValueError("expected at least one name, got none")
    checked = [check_name(name) for name in names]
    twice = sorted({name for name in checked if checked.count(name) > 1})
    if twice:
        raise ValueError(f"{twice[0]!r} is asked for twice; one name finds all things of its kind")
    return checked


def _listed(names: Sequence[str]) -> str:
    checked = check_names(names)
    split = [name for name in checked if "," in name]
    if split:
        raise ValueError(f"the name {split[0]!r} holds a comma, which separates names here")
    return ", ".join(checked)


def _some(text: str, what: str) -> str:
    if not text.strip():
        raise ValueError(f"the {what} is empty; expected some text")
    return text
