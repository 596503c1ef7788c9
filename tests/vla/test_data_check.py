"""Every fault is found and says where it is, what it is and what to do."""

import json
import shutil
import socket

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla.data.check import check
from vla.data.dataset import open_dataset
from vla.data.demonstrations import Demonstrations
from vla.data.stats import norm_stats

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"


@pytest.fixture
def root(video_dataset, tmp_path):
    """A copy to damage."""
    return shutil.copytree(video_dataset, tmp_path / "copy")


def set_info(root, **values):
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def set_info_shape(root, feature, shape):
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features[feature]["shape"] = shape
    set_info(root, features=features)


def set_values(root, file, column, values: dict[int, object]):
    """Change single rows of one column of a parquet file."""
    table = pq.read_table(root / file)
    rows = table.column(column).to_pylist()
    for row, value in values.items():
        rows[row] = value
    kind = table.schema.field(column).type
    changed = table.set_column(table.schema.names.index(column), column, pa.array(rows, kind))
    pq.write_table(changed, root / file)


def drop_rows(root, file, rows):
    table = pq.read_table(root / file)
    kept = [i not in rows for i in range(len(table))]
    pq.write_table(table.filter(pa.array(kept, pa.bool_())), root / file)


def only(root, **options) -> str:
    """The one fault that is found, which is also what training stops with."""
    faults = check(root, **options)
    assert len(faults) == 1
    line = str(faults[0])
    assert "\n" not in line
    return line


def test_a_whole_dataset_has_no_faults(video_dataset, image_dataset):
    assert check(video_dataset, decode=True) == []
    assert check(image_dataset, decode=True) == []


def test_training_stops_with_the_first_fault_and_counts_the_others(root):
    set_values(root, DATA, "action", {6: [0.0, np.nan], 7: [np.inf, 0.0]})
    with pytest.raises(ValueError, match=r"episode 1 frame 1: action\[1\] is nan.*and 1 more") as e:
        Demonstrations(root, 4)
    assert "\n" not in str(e.value)


def test_a_missing_folder_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no dataset at .*nowhere; make one with `vla"):
        Demonstrations(tmp_path / "nowhere", 4)


def test_a_folder_that_is_no_dataset_says_what_it_holds(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(
        FileNotFoundError, match=r"info.json is missing, the folder holds photo.jpg"
    ):
        check(tmp_path)


def test_version_2_says_how_to_convert(root):
    set_info(root, codebase_version="v2.1")
    with pytest.raises(ValueError, match=r"is a LeRobotDataset v2.1, .*convert_dataset_v21_to_v30"):
        Demonstrations(root, 4)


def test_damaged_metadata_is_named(root):
    (root / "meta/info.json").write_text("{")
    with pytest.raises(ValueError, match=r"info.json is not JSON"):
        check(root)


def test_a_damaged_table_is_named(root):
    (root / "meta/tasks.parquet").write_bytes(b"PAR1 nothing else")
    with pytest.raises(ValueError, match=r"tasks.parquet is not a whole parquet file"):
        check(root)


def test_an_unusable_rate_is_named(root):
    set_info(root, fps=0)
    with pytest.raises(ValueError, match=r"info.json has fps 0"):
        check(root)


@pytest.mark.parametrize(
    "missing", ["meta/tasks.parquet", "meta/episodes", "data", "videos", "meta/info.json"]
)
def test_what_is_missing_is_named_and_not_looked_for_on_the_hub(root, missing, monkeypatch):
    def no_network(*address, **_):
        raise AssertionError(f"asked for {address}")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    path = root / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=rf"{missing}\S* (is missing|has no)"):
        Demonstrations(root, 4)
    if missing != "videos":
        with pytest.raises(FileNotFoundError, match=missing):
            norm_stats(root)


def test_metadata_without_a_column_is_named(root):
    table = pq.read_table(root / EPISODES)
    pq.write_table(table.drop_columns(["length"]), root / EPISODES)
    with pytest.raises(ValueError, match=r"file-000.parquet has no column length, only"):
        open_dataset(root)


def test_a_feature_without_a_type_is_named(root):
    info = json.loads((root / "meta/info.json").read_text())
    del info["features"]["action"]["dtype"]
    set_info(root, features=info["features"])
    with pytest.raises(ValueError, match="gives feature action no dtype or no shape"):
        open_dataset(root)


def test_rows_that_lerobot_cannot_read_end_in_one_line(root):
    set_info_shape(root, "action", [7])
    with pytest.raises(
        ValueError, match=r"data cannot be read \(.*\); `vla check .*` says more"
    ) as e:
        norm_stats(root)
    assert "\n" not in str(e.value)
    drop_rows(root, DATA, [7])
    set_info_shape(root, "action", [2])
    with pytest.raises(ValueError, match=r"data has 15 rows, meta/episodes counts 16 frames"):
        norm_stats(root)


def test_a_file_of_no_episode(root):
    shutil.copy(root / DATA, root / "data/chunk-000/file-001.parquet")
    assert "file-001.parquet belongs to no episode, but LeRobot reads" in only(root)


def test_episodes_out_of_order(root):
    set_values(root, EPISODES, "episode_index", {0: 1, 1: 0})
    assert only(root).startswith("meta/episodes: lists the episodes out of order; sort")


def test_no_episodes(root):
    drop_rows(root, EPISODES, range(3))
    with pytest.raises(ValueError, match=r"file-000.parquet has no rows; copy it again"):
        open_dataset(root)
    set_info(root, total_episodes=0, total_frames=0, total_tasks=0)
    assert only(root).startswith("meta/episodes: there are no episodes; collect some")


def test_an_episode_that_is_not_listed(root):
    drop_rows(root, EPISODES, [1])
    faults = [str(fault) for fault in check(root)]
    assert faults[0].startswith("episode 1: is missing from meta/episodes")


def test_an_episode_that_is_listed_twice(root):
    set_values(root, EPISODES, "episode_index", {1: 0})
    assert only(root).startswith("episode 0: is listed twice")


def test_wrong_totals(root):
    set_info(root, total_frames=9999)
    assert "total_frames is 9999, meta/episodes has 16; set total_frames to 16" in only(root)


def test_an_episode_without_frames(root):
    set_values(root, EPISODES, "length", {1: 0})
    set_info(root, total_frames=12)
    assert only(root).startswith("episode 1: has 0 frames; drop it")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite(root, value):
    set_values(root, DATA, "observation.state", {12: [0.0, 0.0, value]})
    assert only(root).startswith(f"episode 2 frame 3: observation.state[2] is {value}; drop")


def test_a_row_that_is_missing(root):
    drop_rows(root, DATA, [7])
    faults = [str(fault) for fault in check(root)]
    assert faults[0].startswith("episode 1 frame 2: index is 8 where 7 was expected")


def test_rows_that_are_missing_at_the_end(root):
    drop_rows(root, DATA, [15])
    faults = [str(fault) for fault in check(root)]
    assert faults[0].startswith("data: there are 15 rows, meta/episodes counts 16 frames")


def test_rows_of_another_episode(root):
    set_values(root, DATA, "episode_index", {6: 2})
    assert only(root).startswith("episode 1: contains rows of episode 2")


def test_frames_out_of_order(root):
    set_values(root, DATA, "frame_index", {6: 3})
    faults = [str(fault) for fault in check(root)]
    assert faults[0].startswith("episode 1 frame 1: frame_index is 3")


def test_boundaries_that_do_not_join(root):
    set_values(root, EPISODES, "dataset_from_index", {1: 6})
    faults = [str(fault) for fault in check(root)]
    assert faults[0].startswith("episode 1: begins at row 6, expected 5")


def test_another_rate(root):
    set_info(root, fps=30)
    first = str(check(root)[0])
    assert first.startswith(
        "episode 0 frame 1: timestamp is 0.1000 s, frame 1 at 30 fps is at 0.03"
    )


def test_a_timestamp_that_slipped(root):
    set_values(root, DATA, "timestamp", {10: 0.15})
    assert only(root).startswith(
        "episode 2 frame 1: timestamp is 0.1500 s, frame 1 at 10 fps is at"
    )


def test_a_task_that_is_not_there(root):
    set_values(root, DATA, "task_index", {5: 99})
    assert only(root).startswith(
        "episode 1 frame 0: task_index is 99, meta/tasks.parquet has 2 tas"
    )


def test_a_column_that_is_missing(root):
    table = pq.read_table(root / DATA)
    pq.write_table(table.drop_columns(["observation.state"]), root / DATA)
    assert "file-000.parquet has no column observation.state, only" in only(root)


def test_an_action_of_another_length(root):
    table = pq.read_table(root / DATA)
    rows = table.column("action").to_pylist()
    rows[6] = [1.0, 2.0, 3.0]
    at = table.schema.names.index("action")
    pq.write_table(
        table.set_column(at, "action", pa.array(rows, pa.list_(pa.float32()))), root / DATA
    )
    assert "action has 3 values in row 6 where others have 2" in only(root)


def test_a_shape_that_is_not_the_datas(root):
    set_info_shape(root, "action", [7])
    assert "action has 2 numbers per frame, info.json says [7]" in only(root)


def test_a_missing_feature(root):
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["actions"] = info["features"].pop("action")
    set_info(root, features=info["features"])
    assert str(check(root)[0]).startswith("meta/info.json: has no feature action, only ")


def test_missing_videos_are_all_listed(root):
    shutil.rmtree(root / "videos")
    faults = [str(fault) for fault in check(root)]
    assert len(faults) == 2
    assert faults[0].startswith("camera top: video ")
    assert faults[1].startswith("camera wrist: video ")
    assert all("file-000.mp4 is missing; copy the dataset again" in fault for fault in faults)


@pytest.mark.parametrize("keep", [0, 0.4])
def test_a_cut_video(root, keep):
    content = (root / VIDEO).read_bytes()
    (root / VIDEO).write_bytes(content[: int(len(content) * keep)])
    faults = [str(fault) for fault in check(root, decode=True)]
    assert faults
    assert "camera top: video " in faults[0]


def test_a_video_with_too_few_frames(root):
    set_values(root, EPISODES, "length", {2: 70})
    set_info(root, total_frames=79)
    assert any("has 16 frames, its episodes need 79" in str(fault) for fault in check(root))


def test_a_camera_without_videos(root):
    table = pq.read_table(root / EPISODES)
    key = "videos/observation.images.top/"
    names = [name for name in table.schema.names if not name.startswith(key)]
    pq.write_table(table.select(names), root / EPISODES)
    first = str(check(root)[0])
    assert "camera top is declared but episode 0 has no video of it" in first


def test_a_path_that_leads_out_of_the_folder(root):
    set_info(root, video_path="../../{video_key}/{chunk_index}/{file_index}.mp4")
    assert "outside the dataset; restore LeRobot's own" in str(check(root)[0])


def test_faults_of_one_kind_are_cut_short(root):
    set_values(root, DATA, "action", {i: [np.nan, np.nan] for i in range(16)})
    faults = check(root)
    assert len(faults) == 21
    assert str(faults[-1]) == "…: more of the same follow; mend these first"
