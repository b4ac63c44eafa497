"""A loras folder and a user folder of this test run's own."""

import folder_paths
import pytest


@pytest.fixture(scope="session", autouse=True)
def loras_folder(tmp_path_factory):
    """Where trained LoRAs are saved: the first of the host's loras folders."""
    folder = tmp_path_factory.mktemp("trained")
    folder_paths.add_model_folder_path("loras", str(folder), is_default=True)
    return folder


@pytest.fixture(autouse=True)
def user_folder(tmp_path):
    """Where states are saved: empty at the start of each test."""
    before = folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(tmp_path / "user"))
    yield tmp_path / "user"
    folder_paths.set_user_directory(before)
