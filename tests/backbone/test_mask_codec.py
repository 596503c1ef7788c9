"""The mask codec: its arithmetic, PaliGemma's file, its training, and masks within pictures."""

import numpy as np
import pytest
import torch
from mask_shapes import shape

from backbone.detections import Box
from backbone.mask_codec import (
    CODEC,
    SMALL_MASK_CODEC,
    VAE_OID,
    MaskCodec,
    MaskCodecConfig,
    codec_beside,
    cut,
    load_codec,
    load_vae_oid,
    paste,
)
from backbone.weights import save_tensors, save_weights

TINY = MaskCodecConfig(codes=32, code_width=8, widths=(8, 8, 16, 32), residual_blocks=0)
WHOLE = Box(0, 0, 1, 1)


def vae_oid_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under the keys and shapes of vae-oid.npz, written out by hand."""
    sizes: dict[str, tuple[int, ...]] = {"_vq_vae._embedding": (128, 512)}
    convolutions: dict[str, tuple[int, ...]] = {
        "encoder.0": (16, 1, 4, 4),
        "encoder.2": (32, 16, 4, 4),
        "encoder.4": (64, 32, 4, 4),
        "encoder.6": (128, 64, 4, 4),
        "encoder.10": (512, 128, 1, 1),
        "decoder.0": (128, 512, 1, 1),
        "decoder.12": (1, 16, 1, 1),
    }
    for block in ("encoder.8", "encoder.9", "decoder.2", "decoder.3"):
        for layer, side in ((0, 3), (2, 3), (4, 1)):
            convolutions[f"{block}.net.{layer}"] = (128, 128, side, side)
    for name, size in convolutions.items():
        sizes |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    # Transposed convolutions keep their inputs first, so the bias has the second size.
    for name, before, after in ((4, 128, 128), (6, 128, 64), (8, 64, 32), (10, 32, 16)):
        sizes[f"decoder.{name}.weight"] = (before, after, 4, 4)
        sizes[f"decoder.{name}.bias"] = (after,)
    rng = np.random.default_rng(seed)
    return {
        key: rng.normal(0, 1.4 / np.sqrt(np.prod(size[1:])), size).astype(np.float32)
        for key, size in sizes.items()
    }


@pytest.fixture(scope="module")
def arrays():
    return vae_oid_arrays()


@pytest.fixture(scope="module")
def vae_oid(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("codec") / "vae-oid.npz"
    np.savez(path, **arrays)
    return load_vae_oid(path)


# A second implementation: channels last, one output position at a time.


def convolution(x, weights, name, stride=1):
    """x [H, W, C] with zeros around it; weight [out, in, k, k]. Even kernels pad evenly too."""
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    k = weight.shape[-1]
    pad = (k - 1) // 2
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    size = (x.shape[0] - k) // stride + 1
    out = np.zeros((size, size, len(bias)), np.float64)
    for i in range(size):
        for j in range(size):
            window = x[i * stride : i * stride + k, j * stride : j * stride + k]
            out[i, j] = np.einsum("hwc,ochw->o", window, weight) + bias
    return out


def upsampled(x, weights, name):
    """Every input adds its 4×4 stamp at twice its place; one pixel is cut off all around."""
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    size = x.shape[0]
    out = np.zeros((2 * size + 2, 2 * size + 2, len(bias)), np.float64)
    for i in range(size):
        for j in range(size):
            stamp = np.einsum("c,cohw->hwo", x[i, j], weight)
            out[2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += stamp
    return out[1:-1, 1:-1] + bias


def residual(x, weights, name):
    y = np.maximum(convolution(x, weights, f"{name}.0"), 0)
    y = np.maximum(convolution(y, weights, f"{name}.2"), 0)
    return x + convolution(y, weights, f"{name}.4")


def numpy_draw(codes, weights):
    x = weights["_vq_vae._embedding"][codes].reshape(4, 4, -1).astype(np.float64)
    x = np.maximum(convolution(x, weights, "decoder.0"), 0)
    x = residual(residual(x, weights, "decoder.2.net"), weights, "decoder.3.net")
    for layer in (4, 6, 8, 10):
        x = np.maximum(upsampled(x, weights, f"decoder.{layer}"), 0)
    return convolution(x, weights, "decoder.12")[..., 0]


def numpy_encode(mask, weights):
    x = 2.0 * mask[..., None] - 1
    for layer in (0, 2, 4, 6):
        x = np.maximum(convolution(x, weights, f"encoder.{layer}", stride=2), 0)
    x = residual(residual(x, weights, "encoder.8.net"), weights, "encoder.9.net")
    x = convolution(x, weights, "encoder.10").reshape(16, 1, -1)
    distance = np.square(x - weights["_vq_vae._embedding"]).sum(-1)
    return x[:, 0], distance.argmin(-1)


def test_decoding_is_the_published_arithmetic(vae_oid, arrays):
    codes = np.random.default_rng(3).integers(0, 128, (2, 16))
    expected = np.stack([numpy_draw(row, arrays) for row in codes])
    assert expected.min() < -0.5
    assert expected.max() > 0.5
    with torch.no_grad():
        drawn = vae_oid.draw(vae_oid.codebook[torch.from_numpy(codes)])
        shares = vae_oid.decode(torch.from_numpy(codes))
    np.testing.assert_allclose(drawn.numpy(), expected, atol=2e-4)
    np.testing.assert_allclose(shares.numpy(), np.clip(expected / 2 + 0.5, 0, 1), atol=2e-4)


def test_encoding_is_the_published_arithmetic(vae_oid, arrays):
    mask = shape("triangle", 0.5, 0.4, 0.4, 0.3)
    features, codes = numpy_encode(mask, arrays)
    batch = torch.from_numpy(mask)[None]
    with torch.no_grad():
        ours = vae_oid.features(batch)[0].numpy()
        np.testing.assert_allclose(ours, features, atol=1e-3 * np.abs(features).max())
        assert vae_oid.encode(batch)[0].tolist() == codes.tolist()
    assert len(set(codes.tolist())) > 1


def test_sixteen_codes_are_rows_from_top_to_bottom():
    """Only the last place looks at the last row and column: it sees pixels 33 to 63."""
    torch.manual_seed(0)
    codec = MaskCodec(MaskCodecConfig(residual_blocks=0))
    masks = torch.zeros(2, 64, 64)
    masks[1, 63, 63] = 1
    with torch.no_grad():
        one, other = codec.features(masks)
    assert torch.equal(one[:15], other[:15])
    assert not torch.equal(one[15], other[15])


def test_paligemmas_file_is_loaded_strictly(arrays, tmp_path):
    assert len(arrays) == 1 + 2 * (5 + 1 + 5 + 3 * 4)
    path = tmp_path / "vae-oid.npz"
    np.savez(path, **arrays, **{"_vq_vae._ema_w": arrays["_vq_vae._embedding"]})
    codec = load_vae_oid(path)  # averages of a finished training are not needed
    assert torch.equal(codec.codebook, torch.from_numpy(arrays["_vq_vae._embedding"]))

    broken = dict(arrays) | {"decoder.12.bias": np.zeros(2, np.float32), "spare": np.zeros(1)}
    del broken["encoder.10.weight"]
    np.savez(path, **broken)
    message = (
        r"missing from the file: encoder\.10\.weight; not in the model: spare; "
        r"of another shape: decoder\.12\.bias: model \[1\], file \[2\]"
    )
    with pytest.raises(ValueError, match=message):
        load_vae_oid(path)


def test_another_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected big_vision's vae-oid\.npz"):
        load_vae_oid(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(ValueError, match=r"text\.npz is not a whole \.npz file"):
        load_vae_oid(tmp_path / "text.npz")
    pickled = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "pickle.npz", codebook=pickled)
    with pytest.raises(ValueError, match="not a whole"):
        load_vae_oid(tmp_path / "pickle.npz")


@pytest.mark.parametrize("config", [MaskCodecConfig(), SMALL_MASK_CODEC, TINY])
def test_a_codecs_file_tells_its_sizes(config, tmp_path):
    torch.manual_seed(0)
    codec = MaskCodec(config)
    save_weights(codec, tmp_path / CODEC)
    loaded = load_codec(tmp_path / CODEC)
    assert loaded.config == config
    assert not loaded.training
    masks = torch.rand(2, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.encode(masks), codec.encode(masks))
        assert torch.equal(loaded.decode(codec.encode(masks)), codec.decode(codec.encode(masks)))


def test_big_visions_file_is_told_by_its_name(arrays, vae_oid, tmp_path):
    np.savez(tmp_path / VAE_OID, **arrays)
    assert torch.equal(load_codec(tmp_path / VAE_OID).codebook, vae_oid.codebook)


def test_a_codec_is_found_beside_the_weights_and_ours_first(tmp_path):
    assert codec_beside(tmp_path) is None
    for name in (VAE_OID, CODEC):
        (tmp_path / name).touch()
        assert codec_beside(tmp_path) == codec_beside(tmp_path / "model.npz") == tmp_path / name


def test_a_file_without_a_codec_is_refused(tmp_path):
    path = tmp_path / CODEC
    with pytest.raises(FileNotFoundError, match=r"no mask codec at .*mask_codec"):
        load_codec(path)
    save_tensors({"weight": torch.zeros(3)}, path)
    with pytest.raises(
        ValueError, match=r"holds no mask codec; expected mask_codec\.safetensors or"
    ):
        load_codec(path)
    tensors = MaskCodec(TINY).state_dict()
    save_tensors({k: v for k, v in tensors.items() if k != "decoder.10.bias"}, path)
    with pytest.raises(ValueError, match=r"missing from the file: decoder\.10\.bias"):
        load_codec(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="mask_codec"):
        load_codec(path)


def test_shapes_and_codes_are_checked():
    codec = MaskCodec(TINY)
    with pytest.raises(ValueError, match=r"expected masks \[B, 64, 64\], got \[64, 64\]"):
        codec.encode(torch.zeros(64, 64))
    with pytest.raises(ValueError, match=r"expected codes \[B, 16\], got \[16\]"):
        codec.decode(torch.zeros(16, dtype=torch.int64))
    with pytest.raises(ValueError, match="codes are numbered 0 to 31, got 0 to 32"):
        codec.decode(torch.tensor([[32] + [0] * 15]))
    assert codec.decode(torch.zeros(0, 16, dtype=torch.int64)).shape == (0, 64, 64)


# Masks within pictures


def test_cutting_takes_the_box_and_stretches_it():
    mask = np.zeros((100, 200), dtype=bool)
    mask[20:40, 60:120] = True
    inside = cut(mask, Box.from_pixels(60, 20, 120, 40, (100, 200)))
    assert inside.dtype == np.float32
    assert (inside == 1).all()
    half = cut(mask, Box.from_pixels(60, 20, 120, 60, (100, 200)))  # its lower half is empty
    assert (half[:31] == 1).all()
    assert (half[33:] == 0).all()
    np.testing.assert_allclose(cut(mask, WHOLE).mean(), mask.mean(), atol=1e-3)


def test_cutting_rounds_edges_and_stays_in_the_picture():
    mask = np.zeros((10, 10), dtype=bool)
    mask[4, 4] = True
    assert (cut(mask, Box(0.43, 0.38, 0.52, 0.47)) == 1).all()  # 4.3..5.2 and 3.8..4.7 → pixel 4
    assert (cut(mask, Box(0.41, 0.41, 0.42, 0.42)) == 1).all()  # less than a pixel is one
    assert (cut(mask, Box(2, 2, 3, 3)) == 0).all()
    assert (cut(~mask, Box(-1, -1, 0, 0)) == 1).all()


def test_pasting_truncates_edges_and_compares_after_resizing():
    mask = np.full((64, 64), 0.6, np.float32)
    whole = paste(mask, Box(0.19, 0.29, 0.79, 0.99), (10, 10))
    expected = np.zeros((10, 10), dtype=bool)
    expected[2:9, 1:7] = True
    np.testing.assert_array_equal(whole, expected)
    assert not paste(mask, WHOLE, (10, 10), threshold=0.6000001).any()
    assert not paste(mask, Box(0.11, 0, 0.19, 1), (10, 10)).any()  # no whole pixel

    left = np.repeat(np.linspace(-1, 1, 64, dtype=np.float32)[None], 64, 0)
    np.testing.assert_array_equal(
        paste(left, WHOLE, (3, 4), threshold=0), [[False, False, True, True]] * 3
    )


def test_a_box_may_leave_the_picture_on_every_side():
    mask = np.zeros((64, 64), np.float32)
    mask[32:, 32:] = 1
    whole = paste(mask, Box(-0.5, -0.5, 1.5, 1.5), (20, 20))
    np.testing.assert_array_equal(whole, np.add.outer(*2 * [np.arange(20) // 10 * 1]) == 2)
    for box in (Box(-2, 0, -1, 1), Box(2, 0, 3, 1), Box(0, -2, 1, -1), Box(0, 2, 1, 3)):
        assert not paste(mask + 1, box, (20, 20)).any()


def test_a_mask_survives_cutting_and_pasting():
    picture = np.zeros((240, 320), dtype=bool)
    picture[50:150, 100:260] = shape("ring", 0.5, 0.5, 0.5, 0).repeat(3, 0).repeat(3, 1)[:100, :160]
    box = Box.from_pixels(100, 50, 260, 150, picture.shape)
    again = paste(cut(picture, box), box, picture.shape)
    assert (again & picture).sum() / (again | picture).sum() > 0.97


def test_masks_of_another_kind_are_refused():
    with pytest.raises(ValueError, match=r"expected a bool mask \[H, W\], got uint8"):
        cut(np.zeros((4, 4), np.uint8), WHOLE)
    with pytest.raises(ValueError, match=r"expected one mask \[64, 64\], got shape \[1, 64, 64\]"):
        paste(np.zeros((1, 64, 64), np.float32), WHOLE, (4, 4))
