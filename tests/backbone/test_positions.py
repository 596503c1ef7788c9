"""Position embeddings at another resolution, as SciPy's zoom of order 1 makes them."""

import pytest
import torch

from backbone.positions import resample_positions


def test_a_ramp_stays_a_ramp_from_corner_to_corner():
    rows = torch.arange(4.0)[:, None].expand(4, 4)
    ramp = torch.stack([rows, rows.T], -1).flatten(0, 1)
    larger = resample_positions(ramp, 49).unflatten(0, (7, 7))
    expected = torch.linspace(0, 3, 7)
    torch.testing.assert_close(larger[:, 3, 0], expected)
    torch.testing.assert_close(larger[3, :, 1], expected)


def test_values_of_a_small_grid():
    position = torch.tensor([[0.0], [1.0], [4.0], [9.0]])
    expected = [[0, 0.5, 1], [2, 3.5, 5], [4, 6.5, 9]]
    assert resample_positions(position, 9).view(3, 3).tolist() == expected


@pytest.mark.parametrize("sizes", [(16, 32), (4, 7), (8, 3)])
def test_it_is_scipys_zoom_of_order_one(sizes):
    ndimage = pytest.importorskip("scipy.ndimage")
    old, new = sizes
    position = torch.randn(old**2, 5)
    zoom = (new / old, new / old, 1)
    expected = ndimage.zoom(position.view(old, old, 5).numpy(), zoom, order=1)
    found = resample_positions(position, new**2).view(new, new, 5)
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


def test_the_same_size_is_the_same_tensor_and_others_keep_their_dtype():
    position = torch.randn(9, 2).bfloat16()
    assert resample_positions(position, 9) is position
    assert resample_positions(position, 16).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="9 and 15 patches, expected squares"):
        resample_positions(position, 15)
