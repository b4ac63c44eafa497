"""A user folder of each test's own."""

import folder_paths
import pytest


@pytest.fixture(autouse=True)
def user_folder(tmp_path):
    """Where states are saved: empty at the start of each test."""
    before = folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(tmp_path / "user"))
    yield tmp_path / "user"
    folder_paths.set_user_directory(before)
