"""Shared by the tests of data and policy."""

import pytest
import small_dataset


@pytest.fixture(scope="session")
def video_dataset(tmp_path_factory):
    """Root of a dataset of three episodes in videos; not to be changed."""
    return small_dataset.build(tmp_path_factory.mktemp("data") / "videos")


@pytest.fixture(scope="session")
def image_dataset(tmp_path_factory):
    """The same demonstrations with pictures inside the parquet files; not to be changed."""
    return small_dataset.build(tmp_path_factory.mktemp("data") / "images", videos=False)
