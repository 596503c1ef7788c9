"""A toy π0 and π0.5 in float64 with every weight random, and a batch with padding everywhere."""

import pytest
import torch

from vla.batch import Batch
from vla.pi0 import PI0_TINY, Pi0
from vla.pi05 import PI05_TINY, Pi05


@pytest.fixture
def model() -> Pi0:
    return randomised(Pi0(PI0_TINY))


@pytest.fixture
def model05() -> Pi05:
    return randomised(Pi05(PI05_TINY))


def randomised[M: torch.nn.Module](model: M) -> M:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(scale * noise)
    return model.double().eval()


@pytest.fixture
def batch() -> Batch:
    """Three rows: all real, one camera absent, a short prompt and an episode's end."""
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    expert, resolution = PI0_TINY.expert, PI0_TINY.backbone.vision.resolution
    return Batch(
        images=normal(3, 2, 3, resolution, resolution).clamp(-1, 1),
        image_valid=torch.tensor([[True, True], [True, False], [True, True]]),
        tokens=torch.randint(5, 900, (3, 6), generator=generator),
        token_valid=torch.tensor(
            [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
        ).bool(),
        state=normal(3, expert.state_dim),
        actions=normal(3, expert.horizon, expert.action_dim),
        action_valid=torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]).bool(),
    )


@pytest.fixture
def noise(batch: Batch) -> torch.Tensor:
    assert batch.actions is not None
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch.actions.shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def t() -> torch.Tensor:
    return torch.tensor([0.9, 0.35, 0.02], dtype=torch.float64)
