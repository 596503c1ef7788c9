"""From the files of another project's policy to our model and its config."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace

import torch

from action_expert.expert import ActionExpertConfig
from backbone.gemma import GemmaConfig
from backbone.numerics import LEROBOT, OPENPI_JAX, OPENPI_PYTORCH, Numerics
from backbone.paligemma import PaliGemmaConfig
from backbone.siglip import SigLIPConfig
from backbone.sources.places import Weights, largest_first
from backbone.weights import check_fit, fill, shapes_of
from vla.data.stats import NormStats
from vla.model import Model, ModelConfig, build
from vla.pi0 import Pi0Config
from vla.pi05 import Pi05Config
from vla.policy_config import PolicyConfig
from vla.precision import cast
from vla.sources.policy_files import PolicyFiles
from vla.sources.read import read

NUMERICS = {"LeRobot": LEROBOT, "openpi PyTorch": OPENPI_PYTORCH, "openpi JAX": OPENPI_JAX}
_log = logging.getLogger(__name__)


def policy_config(
    files: PolicyFiles, stats: NormStats, given: PolicyConfig | ModelConfig | None = None
) -> PolicyConfig:
    """The config of the policy in `files`.

    given: sizes that the files cannot tell, or a whole config that goes before what they say about
    the robot too. The origin's `Numerics` are put in either way.
    Raises ValueError if a size is still unknown, or `given` is of another model.
    """
    if isinstance(given, PolicyConfig):
        return replace(given, model=model_config(files, given.model))
    return PolicyConfig(
        model=model_config(files, given),
        cameras=files.cameras,
        state_dim=stats.state.dim,
        action_dim=stats.actions.dim,
        prompt_length=files.prompt_length,
        steps=files.steps,
        quantiles=files.quantiles,
        still=0,
        optional_cameras=files.optional_cameras,
        relative_dims=files.relative_dims,
    )


def model_config(files: PolicyFiles, given: ModelConfig | None = None) -> ModelConfig:
    """Sizes of the model in `files`, or `given` where the files cannot tell them.

    Raises ValueError as `policy_config` does.
    """
    numerics = numerics_of(files)
    kind = Pi05Config if files.sizes.adaptive else Pi0Config
    if given is None:
        return kind(_backbone(files, numerics), _expert(files))
    if not isinstance(given, kind):
        raise ValueError(
            f"{files.folder} holds a {files.model} (its expert's norms tell), but the config given "
            f"is a {type(given).__name__}; give a {kind.__name__}"
        )
    if files.horizon not in (None, given.expert.horizon):
        raise ValueError(
            f"{files.folder}: its config.json says {files.horizon} actions a chunk, the config "
            f"given {given.expert.horizon}; set expert.horizon to {files.horizon}"
        )
    return replace(given, backbone=replace(given.backbone, numerics=numerics))


def numerics_of(files: PolicyFiles) -> Numerics:
    """How the implementation that wrote `files` rounds and prepares."""
    numerics = NUMERICS[files.origin]
    return numerics if files.epsilon is None else replace(numerics, std_epsilon=files.epsilon)


def load_model(
    config: ModelConfig, weights: Weights, device: torch.device | str, dtype: torch.dtype
) -> Model:
    """The model with its weights, on `device`, rounded to `dtype` but for what its numerics keep.

    One tensor is read at a time and no second copy of the model is made.
    Raises ValueError, with nothing loaded, if a shape is another, or a key is not known.
    """
    with torch.device("meta"):
        model = cast(build(config), dtype)
    shapes = shapes_of(dict(model.named_parameters()))
    check_fit(shapes, weights.shapes, str(weights.path), weights.stray)
    fill(model, read(largest_first(weights)), device)
    return model


def _backbone(files: PolicyFiles, numerics: Numerics) -> PaliGemmaConfig:
    sizes = files.sizes
    if sizes.vision.heads is None:
        raise ValueError(
            f"{files.folder}: its weights do not tell how many heads a vision block of width "
            f"{sizes.vision.width} has; give the sizes with config=, a Pi0Config or Pi05Config"
        )
    vision = SigLIPConfig(**asdict(sizes.vision))
    return PaliGemmaConfig(vision, GemmaConfig(**asdict(sizes.language)), sizes.vocab, numerics)


def _expert(files: PolicyFiles) -> ActionExpertConfig:
    sizes = files.sizes
    if files.horizon is None:
        raise ValueError(
            f"{files.folder}: nothing in it says how many actions a chunk has (openpi keeps it in "
            "the training config: 50 for its base models); give the sizes with config=, such as "
            "vla.pi0.PI0 or vla.pi05.PI05"
        )
    assert sizes.expert is not None
    assert sizes.state_dim is not None
    assert sizes.action_dim is not None
    return ActionExpertConfig(
        GemmaConfig(**asdict(sizes.expert)), sizes.state_dim, sizes.action_dim, files.horizon
    )


def announce(files: PolicyFiles) -> None:
    """Log what is loaded, under whose numerics, and what is left out."""
    dead = f"; {files.weights.unused_bytes / 1e9:.1f} GB of dead weight left out"
    _log.info(
        "%s: %s of %s, with its numerics%s",
        files.folder,
        files.model,
        files.origin,
        dead if files.weights.unused else "",
    )
    for note in files.notes:
        _log.info("%s: %s", files.folder, note)
