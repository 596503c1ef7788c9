"""The table of a captioning test: COCO, TextCaps, NoCaps, Screen2Words and their like."""

from collections.abc import Sequence

from vla.metrics.bleu import bleu
from vla.metrics.cider import cider_d
from vla.metrics.rouge import rouge_l
from vla.metrics.score import Score


def caption_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[Score, ...]:
    """CIDEr-D, BLEU-4 and ROUGE-L.

    METEOR and SPICE, which need Java and word lists, aren't computed here.
    """
    metrics = (cider_d, bleu, rouge_l)
    return tuple(metric(predictions, references) for metric in metrics)
