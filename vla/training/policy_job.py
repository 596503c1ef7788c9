"""A policy trained on demonstrations: dataset → samples → batches with noise → policy folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from action_expert.flow import sample_time
from backbone import pretrained
from backbone.sources.places import Weights
from backbone.sources.read import read
from backbone.tokenizer import Tokenizer
from backbone.weights import weights_for
from vla.config import TrainConfig
from vla.data.buckets import bucketed
from vla.data.dataset import open_dataset
from vla.data.demonstrations import Demonstrations, split
from vla.data.stats import norm_stats
from vla.model import Model, build
from vla.pi0 import Pi0, Pi0Config
from vla.pi05 import Pi05
from vla.policy import WEIGHTS, Policy
from vla.policy_config import MODEL_TYPES, PROMPT_LENGTHS, PolicyConfig
from vla.processor import Processor
from vla.training.faults import BadData
from vla.training.job import Job, Microbatch
from vla.training.optimiser import under
from vla.training.sampler import (
    TRAIN_NOISE,
    VALIDATION_NOISE,
    draw,
    sample_indices,
    shares,
)
from vla.training.start import Start, drawn
from vla.training.world import ALONE, World

__all__ = ["choose_tokenizer", "init_weights", "policy_job", "policy_start"]


def policy_job(config: TrainConfig, world: World = ALONE) -> Job:
    """Open the data, build the model and start it from `config.init`.

    Statistics come from the training episodes alone.
    Raises BadData, another ValueError or FileNotFoundError, saying what to change, if the data
    can't be trained on, or data, model and `init` do not fit each other.
    """
    data, sizes = config.data, config.model
    with torch.device("meta"):
        model = build(sizes)
    start = policy_start(config, model)
    try:
        dataset = open_dataset(data.root)
        chosen, held_out = split(len(dataset.episodes), data.held_out, config.seed)
        training = _demonstrations(config, chosen)
        validation = _demonstrations(config, held_out) if held_out else None
    except ValueError as error:
        raise BadData(str(error)) from error
    processor = Processor(
        PolicyConfig(
            model=sizes,
            cameras=training.cameras,
            state_dim=training.state_dim,
            action_dim=training.action_dim,
            prompt_length=data.prompt_length or PROMPT_LENGTHS[type(sizes)],
            discrete_state=data.discrete_state,
        ),
        norm_stats(dataset, chosen),
        choose_tokenizer(config),
    )
    chunk = (config.draws, sizes.expert.horizon, sizes.expert.action_dim)
    each = config.batch_size // config.accumulate

    def microbatch(
        source: Demonstrations, indices: Sequence[int], where: Sequence[int], purpose: int
    ) -> Microbatch:
        items = [source[i] for i in indices]
        noise, uniform = draw(config.seed, where, chunk, purpose=purpose)
        t = sample_time(torch.from_numpy(uniform)).float()
        names = [source.name(i) for i in indices]
        seen = bucketed(processor.collate(items), config.text_bucket)
        read = seen.token_valid.sum() + seen.image_valid.sum() * sizes.backbone.vision.tokens
        suffix = sizes.expert.horizon + isinstance(sizes, Pi0Config)  # π0's has the state too
        tokens = int(read) + len(items) * config.draws * suffix
        return Microbatch((seen, torch.from_numpy(noise), t), len(items), names, tokens=tokens)

    def batch(step: int) -> list[Microbatch]:
        return [
            microbatch(
                training, sample_indices(config.seed, where, len(training)), where, TRAIN_NOISE
            )
            for where in shares(step, config.batch_size, config.accumulate, world)
        ]

    def samples(step: int) -> list[str]:
        parts = shares(step, config.batch_size, config.accumulate, world)
        where = [position for part in parts for position in part]
        return [training.name(i) for i in sample_indices(config.seed, where, len(training))]

    def validation_batches() -> Iterator[Microbatch]:
        assert validation is not None
        count = min(len(validation), config.eval_batches * config.batch_size)
        indices = np.linspace(0, len(validation) - 1, count).round().astype(int).tolist()
        for i in range(0, count, each):
            where = range(i, min(i + each, count))
            yield microbatch(validation, indices[i : i + each], where, VALIDATION_NOISE)

    def save(model: nn.Module, folder: Path) -> None:
        assert isinstance(model, Pi0 | Pi05)
        Policy(model, processor).save_pretrained(folder)

    return Job(
        model=model,
        batch=batch,
        save=save,
        held_out=validation_batches if validation is not None else None,
        samples=samples,
        start=start,
        unreached=model.unreached,
    )


def policy_start(config: TrainConfig, model: Model) -> Start:
    """What the parameters of `model`, on the meta device, begin with: `config.init`, and random
    numbers where it gives none or `config.fresh` wants others. Raises as `init_weights` does."""
    if config.init is None:
        return lambda outline: drawn(outline, config.seed)
    weights, part = init_weights(model, config.init)
    fresh = {name for prefix in config.fresh for name, _ in under(model, prefix)}
    taken = {part + name for name in weights.places} - fresh

    def start(outline: nn.Module) -> Iterator[tuple[str, Tensor]]:
        yield from ((part + n, tensor) for n, tensor in read(weights) if part + n in taken)
        yield from drawn(outline, config.seed, without=taken)

    return start


def init_weights(model: Model, folder: Path) -> tuple[Weights, str]:
    """The weights in a policy's folder, or in a PaliGemma's for the backbone alone, and the prefix
    of the part of `model` that they are for. They are not read yet.

    Raises FileNotFoundError if there is neither, ValueError if sizes differ or weights are missing.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"init {folder} is not a model: {path} is missing; give the folder of a policy or of a "
            "PaliGemma, or leave init out to start from random weights"
        )
    kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    if kind in MODEL_TYPES:
        saved, ours = PolicyConfig.load(path).model, model.config
        part = ""
    elif kind == pretrained.MODEL_TYPE:
        saved, ours = pretrained.read_config(folder), model.config.backbone
        part = "backbone."
    else:
        known = " or ".join(map(repr, (*MODEL_TYPES, pretrained.MODEL_TYPE)))
        raise ValueError(f"init {folder} has model_type {kind!r}, expected {known}")
    if saved != ours:
        raise ValueError(
            f"init {folder} has other sizes than the config's model: {saved} there, {ours} here; "
            "make them equal"
        )
    return weights_for(model.get_submodule(part.rstrip(".")), folder / WEIGHTS), part


def _demonstrations(config: TrainConfig, episodes: list[int]) -> Demonstrations:
    data, sizes = config.data, config.model
    return Demonstrations(
        data.root,
        sizes.expert.horizon,
        data.cameras,
        sizes.backbone.resolution,
        episodes,
        cache=data.cache,
        cache_gb=data.cache_gb,
        allow_short_episodes=data.allow_short_episodes,
        resize=sizes.backbone.numerics.resize,
    )


def choose_tokenizer(config: TrainConfig) -> Tokenizer:
    """What `config.data.tokenizer` names, or what stands beside `init`, or the small one."""
    source = config.data.tokenizer or config.init
    return Tokenizer.small() if source is None else Tokenizer.from_pretrained(source)
