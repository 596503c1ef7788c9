"""A policy trained on demonstrations and on image-text examples in one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backbone.tokenizer import Tokenizer
from vla.config import TrainConfig
from vla.data.buckets import bucketed
from vla.data.image_text.mixture import Mixture, MixtureData
from vla.data.text import TextRoom, collate_text, cut_rows, tokens_read
from vla.pi0 import Pi0
from vla.pi05 import Pi05
from vla.training.faults import BadData
from vla.training.job import Job, Microbatch
from vla.training.policy_job import choose_tokenizer, policy_job
from vla.training.sampler import shares
from vla.training.world import ALONE, World

__all__ = ["CoTrainConfig"]

ACTION, TEXT = "action", "text"


@dataclass(frozen=True, kw_only=True)
class CoTrainConfig(TrainConfig):
    """The loss of an update is text loss + `action_weight` · action loss, each the mean over its
    own samples: `batch_size` frames of demonstrations and `text_batch` examples of `text`.

    Each kind has micro-batches of its own, `accumulate` of demonstrations and `text_accumulate` of
    examples, equally many in every process. Both losses are reported by themselves, action_loss
    and text_loss; the validation loss is that of the demonstrations that are held out.

    text_length: tokens of prompt and answer; longer rows are cut and counted, as in a stage.
    insulated: the action loss doesn't reach the backbone, which learns from text alone
    ("knowledge insulation", arXiv 2505.23705; there the text holds discrete actions too).
    """

    text: MixtureData
    text_batch: int
    text_accumulate: int = 1
    text_length: int = 128
    action_weight: float = 1.0
    insulated: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("text_batch", "text_accumulate"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")
        if self.text_batch % self.text_accumulate:
            raise ValueError(
                f"text_batch {self.text_batch} does not divide into {self.text_accumulate} equal "
                "micro-batches; change text_batch or text_accumulate"
            )
        if not self.action_weight >= 0:
            raise ValueError(f"action_weight is {self.action_weight}; it must be 0 or more")

    def job(self, world: World = ALONE) -> Job:
        inner = policy_job(self, world)
        assert isinstance(inner.model, Pi0 | Pi05)
        inner.model.insulated = self.insulated
        tokenizer = choose_tokenizer(self)
        room = TextRoom(tokenizer, self.text_length)
        try:
            examples = self.text.training(self.model.backbone, self.seed, room)
        except ValueError as error:
            raise BadData(str(error)) from error
        # `update` weighs micro-batches by their samples; these take that back
        both = self.batch_size + self.text_batch
        robot, text = self.action_weight * both / self.batch_size, both / self.text_batch

        def batch(step: int) -> Sequence[Microbatch]:
            return [
                *(replace(m, kind=ACTION, factor=robot) for m in inner.batch(step)),
                *(
                    self._text(examples, where, tokenizer, text)
                    for where in shares(step, self.text_batch, self.text_accumulate, world)
                ),
            ]

        return replace(inner, batch=batch, unreached=())  # text reaches all

    def _text(
        self, examples: Mixture, where: range, tokenizer: Tokenizer, factor: float
    ) -> Microbatch:
        rows = [examples[position] for position in where]
        batch = collate_text(rows, tokenizer, self.text_length)
        return Microbatch(
            (bucketed(batch, self.text_bucket),),
            len(where),
            [row.where for row in rows],
            cut_rows(rows, batch, tokenizer),
            factor,
            TEXT,
            tokens_read(batch, self.model.backbone.vision.tokens),
        )
