"""Caption metrics against pycocoevalcap's values, and by hand."""

import json
from math import exp, sqrt
from pathlib import Path

import numpy as np
import pytest

from vla.metrics import bleu, caption_scores, caption_words, cider_d, rouge_l

GOLDEN = Path(__file__).parents[1] / "golden/caption_metrics/captions.json"


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture
def corpus(golden):
    captions = golden["captions"]
    return [c["prediction"] for c in captions], [c["references"] for c in captions]


def test_words_are_those_of_the_java_tokenizer(golden):
    for caption in golden["captions"]:
        texts = [caption["prediction"], *caption["references"]]
        assert [caption_words(t) for t in texts] == caption["words"]


# A caption, then what CoreNLP 3.4.1's PTBTokenizer printed for it, less the dropped punctuation.
JAVA = """
A man's dog can't, won't and mustn't; they've said it's gonna rain.
a man 's dog ca n't wo n't and must n't they 've said it 's gon na rain

"Quote," (bracket) [square] {curly} 'single' — dash – dash... end!
quote -lrb- bracket -rrb- -lsb- square -rsb- -lcb- curly -rcb- single dash dash end

$5.99 or £3, 50% off, 1,000 things at 10:30am, No. 5, 1/2 cup, ½ cup
$ 5.99 or # 3 50 % off 1,000 things at 10:30 am no. 5 1/2 cup 1/2 cup

Mr. Smith of St. Louis, U.S.A. etc. lives by the sea.
mr. smith of st. louis u.s.a. etc. lives by the sea

M&M's and R&B but rock & roll; AT&T
m&m 's and r&b but rock & roll at&t

a t-shirt, an x-ray, a 4-wheeler, 7-eleven and/or www.foo.com/bar
a t-shirt an x-ray a 4-wheeler 7-eleven and/or www.foo.com/bar

Wait!! What?! OK?
wait !! what ?! ok

don’t “curl” it’s O'Neil's o'clock rock 'n' roll
do n't curl it 's o'neil 's o'clock rock 'n' roll
"""


@pytest.mark.parametrize("pair", JAVA.strip().split("\n\n"))
def test_tokenizing_follows_the_published_rules(pair):
    text, words = pair.split("\n")
    assert " ".join(caption_words(text)) == words


def test_punctuation_and_emoji_are_no_words():
    assert caption_words(" .,;: '' `` -- ") == []
    assert caption_words("naïve café 中文 😀") == ["naïve", "café", "中文"]


@pytest.mark.parametrize("longest", [1, 2, 3, 4])
def test_bleu_has_the_reference_values(golden, corpus, longest):
    predictions, references = corpus
    check(bleu(predictions, references, longest), golden[f"BLEU-{longest}"])


def test_cider_and_rouge_have_the_reference_values(golden, corpus):
    check(cider_d(*corpus), golden["CIDEr-D"])
    check(rouge_l(*corpus), golden["ROUGE-L"])


def check(score, golden):
    assert score.value == pytest.approx(golden["value"], rel=1e-12)
    np.testing.assert_allclose(score.per_example, golden["per_example"], rtol=1e-12, atol=1e-15)
    assert score.n == len(score.per_example)
    assert score.interval is not None
    assert score.interval[0] <= score.value <= score.interval[1]


def test_a_caption_equal_to_its_only_reference_has_cider_ten():
    texts = ["a red cup on a table", "two dogs run far away", "the sea at night in summer"]
    score = cider_d(texts, [[t] for t in texts])
    assert score.per_example == pytest.approx([10.0] * 3)


def test_cider_weighs_words_by_their_rarity_and_punishes_another_length():
    # two documents: every run of "red car" has idf log 2, "cup" and the pair "red cup" too
    score = cider_d(["red cup", "car"], [["red car"], ["blue"]])
    # single words: 1 of 2 shared, all of weight log 2: cosine 1/2; pairs: nothing shared
    assert score.per_example == pytest.approx([10 * (1 / 2) / 4, 0.0])
    # length 3 beside 2: two pairs of words beside one
    longer = cider_d(["red car now", "car"], [["red car"], ["blue"]])
    cosines = 2 / (sqrt(3) * sqrt(2)) + 1 / sqrt(2)
    assert longer.per_example[0] == pytest.approx(10 * cosines / 4 * exp(-1 / 72))


def test_words_repeated_by_the_caption_alone_dont_count_in_cider():
    # clipping: "dog dog dog" has three, the reference one
    score = cider_d(["dog dog dog", "x"], [["dog"], ["y"]])
    assert score.per_example[0] == pytest.approx(10 / 4 * (1 / 3) * exp(-(2**2) / 72))


def test_a_single_example_always_has_cider_zero():
    assert cider_d(["a cat"], [["a cat"]]).value == 0


def test_bleu_takes_the_closest_reference_and_the_shorter_of_two_equally_close():
    # 3 words beside references of 2 and 4: the shorter, so there is no penalty
    assert bleu(["a b c"], [["a b", "a b c d"]], 1).value == pytest.approx(1)
    # 2 words beside 4 alone: exp(1 − 4/2)
    assert bleu(["a b"], [["a b c d"]], 1).value == pytest.approx(exp(-1))


def test_bleu_counts_over_the_corpus():
    score = bleu(["a a a", "b"], [["a"], ["b"]], 1)
    assert score.value == pytest.approx((1 + 1) / (3 + 1))
    assert score.per_example == pytest.approx([1 / 3, 1])


def test_rouge_takes_best_precision_and_best_recall():
    # "a b c" is in the first whole (recall 3/5), and covers "a b" (recall 1) with 2/3
    score = rouge_l(["a b c"], [["a x b y c", "a b"]])
    assert score.value == pytest.approx(1.0)


def test_the_table_of_captions_has_three_metrics(corpus):
    assert [s.name for s in caption_scores(*corpus)] == ["CIDEr-D", "BLEU-4", "ROUGE-L"]


def test_references_that_dont_fit_are_refused():
    with pytest.raises(ValueError, match="2 predictions for 1 examples"):
        cider_d(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="example 1: expected a list of reference captions"):
        bleu(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="example 0: expected a list"):
        rouge_l(["a"], ["a caption, not a list"])
    with pytest.raises(ValueError, match="at least one"):
        cider_d([], [])


def test_what_a_broken_model_says_is_split_in_linear_time():
    # texts on which a careless pattern takes quadratic time
    assert caption_words("a" * 50_000) == ["a" * 50_000]
    assert caption_words("a." * 20_000) == ["a." * 20_000]
    assert caption_words("." * 20_000) == []
    assert caption_words("<a" * 20_000) == ["<", "a"] * 20_000
    assert caption_words("a@" * 20_000)[0].startswith("a@a")
