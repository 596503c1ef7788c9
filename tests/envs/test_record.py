import av
import numpy as np
import pytest

from envs.record import side_by_side, write_mp4


def test_a_video_reads_back_as_it_was_written(tmp_path):
    frames = np.full((12, 63, 96, 3), 127, np.uint8)
    for t in range(12):
        frames[t, 20:40, 5 * t : 5 * t + 30] = (255, 255, 0)
    path = write_mp4(tmp_path / "videos" / "a.mp4", frames, fps=5)
    container = av.open(str(path))
    assert container.streams.video[0].average_rate == 5
    read = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    container.close()
    assert read.shape == (12, 64, 96, 3)  # an odd height has become even
    assert abs(read[:, :63].astype(int) - frames).mean() < 3


def test_cameras_are_put_side_by_side_at_one_height():
    frames = {
        "top": np.full((4, 48, 48, 3), 1, np.uint8),
        "render": np.full((4, 100, 200, 3), 2, np.uint8),
    }
    picture = side_by_side(frames, height=96)
    assert picture.shape == (4, 96, 96 + 192, 3)
    assert (picture[:, :, :96] == 1).all()
    assert (picture[:, :, 96:] == 2).all()


@pytest.mark.parametrize("frames", [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3))])
def test_anything_but_pictures_is_refused(frames, tmp_path):
    with pytest.raises(ValueError, match=r"expected frames uint8 \[T, H, W, 3\]"):
        write_mp4(tmp_path / "a.mp4", frames)


def test_cameras_of_different_lengths_are_refused():
    frames = {"a": np.zeros((2, 8, 8, 3), np.uint8), "b": np.zeros((3, 8, 8, 3), np.uint8)}
    with pytest.raises(ValueError, match="as many frames of every camera"):
        side_by_side(frames)
