"""A stage of PaliGemma's training: where its weights come from, and what it learns from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from tyro.conf import AvoidSubcommands

from backbone.gemma import set_dropout
from backbone.initialise import in_order
from backbone.mask_codec import codec_beside
from backbone.paligemma import PaliGemma, PaliGemmaConfig
from backbone.pretrained import outlined, read_config, save_pretrained
from backbone.sources.parts import gemma_files, siglip_files
from backbone.sources.read import read
from backbone.sources.sizes import Stack
from backbone.stage0 import NEW_ROWS_STD, outlined_parts
from backbone.tokenizer import NUM_LOC, NUM_SEG, SMALL_MODEL, Tokenizer
from backbone.weights import check_fit, shapes_of
from vla.config import RunConfig
from vla.data.buckets import bucketed
from vla.data.examples import Examples, TabletopData
from vla.data.image_text.mixture import MixtureData
from vla.data.text import TextExample, TextRoom, collate_text, cut_rows, tokens_read, without_task
from vla.training.faults import BadData
from vla.training.job import Job, Microbatch
from vla.training.optimiser import under
from vla.training.sampler import shares
from vla.training.start import Start, begin, drawn
from vla.training.world import ALONE, World

__all__ = ["StageConfig", "outset", "started"]

PARTS = {"siglip": "vision", "gemma": "language"}  # a source, and the part that it fills


@dataclass(frozen=True, kw_only=True)
class StageConfig(RunConfig):
    """Stages 1 to 3 of PaliGemma (arXiv 2407.07726, section 3), with what its ablations vary.

    The weights come from `init`, a PaliGemma of this package, Hugging Face or big_vision; or from a
    SigLIP and a Gemma (`backbone.stage0`), with a zero projection and new rows for `<loc>` and
    `<seg>`. Parts named in `fresh` start from random weights all the same, and a part that nothing
    is given for has to be named there.

    init_resolution: of `init`'s images, where it is another than the model's; position embeddings
    are resampled from it. A checkpoint of any other resolution is refused.
    new_rows: "random" N(0, 0.02²); "average", around the mean of the text rows; "ordered",
    neighbours alike (`backbone.initialise`). They are drawn with `siglip` and `gemma` alone.
    text_length: tokens of prompt and answer; longer rows are cut on the right, as in big_vision,
    and counted as `cut` in the metrics. None: as many as the longest row of a batch takes.
    dropout: in the two places of each Gemma block (`backbone.gemma.set_dropout`). prompt_loss: the
    prompt's tokens count in the loss too; the model's design has to be causal there. task_prefix:
    False takes the words from prompts that name the task.
    """

    model: PaliGemmaConfig
    data: AvoidSubcommands[TabletopData | MixtureData]
    init: Path | None = None
    init_resolution: int | None = None
    siglip: Path | None = None
    gemma: Path | None = None
    tokenizer: Path | None = None  # folder or file; None: init's or gemma's, or the small one
    fresh: tuple[str, ...] = ()
    new_rows: Literal["random", "average", "ordered"] = "random"
    text_length: int | None = None
    label_smoothing: float = 0.0
    dropout: float = 0.0
    prompt_loss: bool = False
    task_prefix: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.init is not None and (self.siglip or self.gemma):
            raise ValueError("init and siglip or gemma are both given; weights need one source")
        if self.init is None:
            if self.init_resolution is not None:
                raise ValueError("init_resolution is given without init; leave it out")
            for source, part in PARTS.items():
                needless = part in self.fresh or (part == "vision" and not self.model.vision.depth)
                if getattr(self, source) is None and not needless:
                    raise ValueError(
                        f"the weights of {part} name no source; give init, a PaliGemma's folder, "
                        f'or {source}, or say fresh=("{part}",) for random ones'
                    )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it is a share in [0, 1)")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it is a share in [0, 1)")
        if self.prompt_loss and self.model.design.causal == "answer":
            raise ValueError(
                "prompt_loss is True, but prompt tokens see those after them: set "
                'model.design.causal to "text" or "all"'
            )
        if self.text_length is not None and self.text_length < 2:
            raise ValueError(f"text_length is {self.text_length}; give 2 tokens or more, or None")

    def job(self, world: World = ALONE) -> Job:
        tokenizer = self.vocabulary()
        model, start = outset(self, tokenizer)
        set_dropout(model, self.dropout)
        room = None if self.text_length is None else TextRoom(tokenizer, self.text_length)
        try:
            training = self.data.training(model.config, self.seed, room)
            held_out = self.data.held_out(model.config, self.seed, room)
        except ValueError as error:
            raise BadData(str(error)) from error
        smoothing = (torch.tensor(self.label_smoothing),) if self.label_smoothing else ()

        def microbatches(
            examples: Examples, step: int, world: World, extra: tuple[Tensor, ...]
        ) -> list[Microbatch]:
            return [
                self._microbatch([examples[i] for i in part], part, tokenizer, extra)
                for part in shares(step, self.batch_size, self.accumulate, world)
            ]

        def validation() -> Iterator[Microbatch]:
            assert held_out is not None
            for step in range(self.eval_batches):
                yield from microbatches(held_out, step, ALONE, ())

        def save(model: nn.Module, folder: Path) -> None:
            assert isinstance(model, PaliGemma)
            save_pretrained(model, tokenizer, folder)
            codec = self.mask_codec()
            if codec is not None:
                shutil.copyfile(codec, folder / codec.name)

        return Job(
            model,
            batch=lambda step: microbatches(training, step, world, smoothing),
            save=save,
            held_out=None if held_out is None else validation,
            result="paligemma",
            start=start,
        )

    def mask_codec(self) -> Path | None:
        """The file of the codec that the result will be saved with: the data's, or init's."""
        codec = self.data.codec
        if codec is not None and codec.is_file():
            return codec
        source = codec or self.init
        return None if source is None else codec_beside(source)

    def vocabulary(self) -> Tokenizer:
        """The tokenizer that `tokenizer` names, or that stands beside the weights.

        Raises ValueError unless it has as many ids as the model has rows.
        """
        beside = next((p for p in (self.init, self.gemma) if p is not None and p.is_dir()), None)
        tokenizer = Tokenizer.from_pretrained(self.tokenizer or beside or SMALL_MODEL)
        if tokenizer.vocab_size != self.model.vocab:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} ids but model.vocab is "
                f"{self.model.vocab}; give the weights' own with tokenizer"
            )
        return tokenizer

    def _microbatch(
        self,
        examples: list[TextExample],
        part: range,
        tokenizer: Tokenizer,
        extra: tuple[Tensor, ...],
    ) -> Microbatch:
        if not self.task_prefix:
            examples = [replace(e, prompt=without_task(e.prompt)) for e in examples]
        batch = collate_text(examples, tokenizer, self.text_length)
        if self.prompt_loss:
            batch = replace(batch, counted=batch.token_valid)
        counts = {} if self.text_length is None else cut_rows(examples, batch, tokenizer)
        batch = bucketed(batch, self.text_bucket)
        names = [e.where or f"tabletop: scene {i}" for e, i in zip(examples, part, strict=True)]
        tokens = tokens_read(batch, self.model.vision.tokens)
        return Microbatch((batch, *extra), len(part), names, counts, tokens=tokens)


def started(config: StageConfig, tokenizer: Tokenizer) -> PaliGemma:
    """The model of `config.model` with the weights that it starts from, float32 on the CPU.
    Raises as `outset` does."""
    model, start = outset(config, tokenizer)
    begin(model, start(model), torch.device("cpu"))
    return model


def outset(config: StageConfig, tokenizer: Tokenizer) -> tuple[PaliGemma, Start]:
    """The model of `config.model`, on the meta device, and the weights that it starts from.

    Raises FileNotFoundError or ValueError if a source is missing, of other sizes or of a resolution
    that the config does not tell.
    """
    if config.init is not None:
        model, given = _from_init(config, config.init)
    elif config.siglip is not None and config.gemma is not None:
        model, given = _from_parts(config, config.siglip, config.gemma)
    else:
        with torch.device("meta"):
            model = PaliGemma(config.model)
        given = _one_part(model, config)
    fresh = {name for prefix in config.fresh for name, _ in under(model, prefix)}
    ordered = config.init is None and config.new_rows == "ordered"

    def start(outline: nn.Module) -> Iterator[tuple[str, Tensor]]:
        taken: set[str] = set()
        for name, tensor in given(outline):
            if name not in fresh:
                taken.add(name)
                yield name, tensor
        yield from drawn(outline, config.seed, without=taken)

    if not ordered:
        return model, start
    turn = torch.Generator
    return model, lambda outline: in_order(
        start(outline), None, tokenizer.loc(0), turn().manual_seed(config.seed)
    )


def _from_init(config: StageConfig, init: Path) -> tuple[PaliGemma, Start]:
    saved, ours = read_config(init), config.model
    wanted = config.init_resolution or ours.vision.resolution
    if saved.vision.resolution != wanted:
        told = f"init_resolution says {wanted}"
        if config.init_resolution is None:
            told = f"the model's is {wanted} and init_resolution names no other"
        raise ValueError(
            f"{init} is a PaliGemma of {saved.vision.resolution} pixels, but {told}; give the "
            "checkpoint that this stage goes on from, or say init_resolution="
            f"{saved.vision.resolution} to resample its position embeddings"
        )
    _check_sizes(saved, ours, str(init))
    model, tensors = outlined(init, ours)
    return model, lambda _: tensors()


def _from_parts(config: StageConfig, siglip: Path, gemma: Path) -> tuple[PaliGemma, Start]:
    ours = config.model
    model, tensors = outlined_parts(
        siglip,
        gemma,
        vocab=ours.vocab,
        numerics=ours.numerics,
        average_rows=config.new_rows == "average",
    )
    found = model.config
    if found.vision.resolution != ours.vision.resolution:
        raise ValueError(
            f"{siglip} is a SigLIP of {found.vision.resolution} pixels, the model's is "
            f"{ours.vision.resolution}; stage 1 keeps the resolution, a stage after it raises it"
        )
    _check_sizes(found, ours, f"{siglip} with {gemma}")
    with torch.device("meta"):
        model = PaliGemma(ours)
    own = {name for name, _ in model.named_parameters()}

    def given(_: nn.Module) -> Iterator[tuple[str, Tensor]]:
        generator = torch.Generator().manual_seed(config.seed)
        plain = ours.design.connector is None  # else it is drawn, with its last layer at zero
        for name, tensor in tensors(generator):
            if name in own and (plain or not name.startswith("projector.")):
                yield name, tensor

    return model, given


def _check_sizes(found: PaliGemmaConfig, ours: PaliGemmaConfig, source: str) -> None:
    """Everything but resolution, numerics, design and Gemma 2's caps, which a stage may choose."""
    names = (*Stack.__dataclass_fields__, "post_norms")
    language = {name: getattr(found.language, name) for name in names}
    sizes = [
        ("vision", asdict(replace(found.vision, resolution=ours.vision.resolution)), ours.vision),
        ("language", language, ours.language),
        ("vocab", {"vocab": found.vocab}, ours),
    ]
    other = [
        f"{part}.{name} {value} there, {getattr(own, name)} here"
        for part, values, own in sizes
        for name, value in values.items()
        if value != getattr(own, name)
    ]
    if other:
        raise ValueError(f"{source} has other sizes than the config's model: {'; '.join(other)}")


def _one_part(model: PaliGemma, config: StageConfig) -> Start:
    """The weights of the tower that has a source, if one has; the other one is left out."""
    rows = config.model.vocab - NUM_LOC - NUM_SEG
    if config.siglip is not None:
        weights, prefixes = siglip_files(config.siglip).weights, ("vision.",)
    elif config.gemma is not None:
        weights, prefixes = gemma_files(config.gemma, rows).weights, ("language.", "embedding.")
    else:
        return lambda _: ()
    shapes = {
        n: shape
        for n, shape in shapes_of(dict(model.named_parameters())).items()
        if n.startswith(prefixes)
    }
    if config.gemma is not None:
        shapes["embedding.weight"] = (rows, model.config.language.width)
    check_fit(shapes, weights.shapes, str(weights.path))

    def given(_: nn.Module) -> Iterator[tuple[str, Tensor]]:
        generator = torch.Generator().manual_seed(config.seed)
        for name, tensor in read(weights):
            if name == "embedding.weight":
                new = torch.randn(NUM_LOC + NUM_SEG, tensor.shape[1], generator=generator)
                tensor = torch.cat([tensor.float(), new * NEW_ROWS_STD])
            yield name, tensor

    return given
