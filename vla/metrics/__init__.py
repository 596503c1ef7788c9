"""Metrics of image-text tasks, each after its public reference; see each file for the rule.

Rules for one answer (`Rule`) become the score of a set with `answer_score`; the others take all
predictions at once. Every value is a share in [0, 1], CIDEr-D in [0, 10].
"""

from vla.metrics.anls import anls, anls_lower
from vla.metrics.answers import Rule, answer_score
from vla.metrics.bleu import bleu
from vla.metrics.boxes import Box, box_accuracy, box_iou, mask_iou, mean_mask_iou, paste_mask
from vla.metrics.captions import caption_scores
from vla.metrics.cider import cider_d
from vla.metrics.detection import Detection, mean_average_precision
from vla.metrics.exact import choice_match, exact_match, folded_match, lower_match, number_match
from vla.metrics.groups import all_right, by_group, macro_average
from vla.metrics.ptb import caption_words
from vla.metrics.relaxed import relaxed_match, relaxed_match_lower
from vla.metrics.rouge import rouge_l
from vla.metrics.score import Score, load_scores, mean_score, save_scores, score_table
from vla.metrics.vqa import normalise_answer, soft_accuracy, vqa_accuracy

__all__ = [
    "Box",
    "Detection",
    "Rule",
    "Score",
    "all_right",
    "anls",
    "anls_lower",
    "answer_score",
    "bleu",
    "box_accuracy",
    "box_iou",
    "by_group",
    "caption_scores",
    "caption_words",
    "choice_match",
    "cider_d",
    "exact_match",
    "folded_match",
    "load_scores",
    "lower_match",
    "macro_average",
    "mask_iou",
    "mean_average_precision",
    "mean_mask_iou",
    "mean_score",
    "normalise_answer",
    "number_match",
    "paste_mask",
    "relaxed_match",
    "relaxed_match_lower",
    "rouge_l",
    "save_scores",
    "score_table",
    "soft_accuracy",
    "vqa_accuracy",
]
