"""`attention` beside a second one in float64, with gradients."""

import pytest
import torch
from torch import Tensor

from backbone.attention import attention

B, T, S, H = 2, 5, 7, 16


def drawn(n: int, k: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + k)
    shapes = ((B, n, T, H), (B, k, S, H), (B, k, S, H))
    q, k_, v = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return leaves(dtype, q, k_, v)


def leaves(dtype: torch.dtype, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Leaves of that dtype with these values."""
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in (q, k, v))
    return q, k, v


def some_mask() -> Tensor:
    mask = torch.rand(B, 1, T, S, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[0, 0, 2] = False  # a query that sees nothing
    mask[1, 0, 4] = False
    return mask


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Head by head, row by row."""
    rows = torch.zeros(B, q.shape[1], T, H, dtype=q.dtype)
    for b in range(B):
        for n in range(q.shape[1]):
            shared = n * k.shape[1] // q.shape[1]
            for t in range(T):
                seen = torch.ones(S, dtype=torch.bool) if mask is None else mask[b, 0, t]
                if seen.any():
                    keys, values = k[b, shared, seen], v[b, shared, seen]
                    rows[b, n, t] = (keys @ q[b, n, t] * scale).softmax(0) @ values
    return rows


@pytest.mark.parametrize(("n", "k"), [(4, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_outputs_and_gradients_are_those_of_the_formula(n, k, masked, dtype):
    mask = some_mask() if masked else None
    given = torch.randn(B, n, T, H, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    rounded = leaves(dtype, *drawn(n, k))
    exact = leaves(torch.float64, *rounded)
    expected = plain(*exact, mask, 0.3)
    expected.backward(given)
    inputs = drawn(n, k, dtype)
    out = attention(*inputs, mask, 0.3)
    out.backward(given.to(dtype))
    assert out.dtype == dtype
    near = 1e-12 if dtype == torch.float64 else 0.012
    assert (out - expected).norm() <= near * expected.norm()
    for ours, theirs in zip(inputs, exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert ours.grad.dtype == dtype
        assert (ours.grad - theirs.grad).norm() <= near * theirs.grad.norm()


def test_what_learns_in_bfloat16_is_computed_as_what_does_not():
    """Forwards it is the same kernel, so that a policy acts as it was trained."""
    inputs = drawn(4, 1, torch.bfloat16)
    learning = attention(*inputs, some_mask())
    with torch.no_grad():
        acting = attention(*inputs, some_mask())
    assert torch.equal(learning, acting)


def test_autocast_reaches_it():
    inputs = drawn(4, 1, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(*inputs, some_mask())
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in inputs)
