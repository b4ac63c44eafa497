"""What a picture costs is told beside the plain ones around it."""

import inspect
import platform
import subprocess
import sys

import picture
import pytest


def test_a_ratio_is_to_the_plain_pictures_just_before_and_after(monkeypatch):
    monkeypatch.setattr(picture, "KINDS", {"two": (2, {}), "four": (4, {})})
    monkeypatch.setattr(picture, "encoded", lambda clip, text: text)
    monkeypatch.setattr(picture, "composed", lambda model, clip, chain, settings: (f"{len(chain)} concepts", [], []))
    plain = iter([9, 10, 14, 6])  # the first is for what is done once only
    took = {"2 concepts": iter([9, 24]), "4 concepts": iter([9, 30])}
    monkeypatch.setattr(picture, "seconds", lambda model, *_, steps=None: next(took.get(model, plain)))
    assert picture.measure("a model", "plain", None, [*range(8)]) == {"two": 2.0, "four": 3.0, "spread": 2.33}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such option")
def test_memory_that_is_freed_is_kept(tmp_path):
    """In a process of its own, whose allocator no other test shares."""
    source = inspect.getsource(picture.keep_freed_memory)
    script = tmp_path / "kept.py"
    script.write_text(
        f"import ctypes, os, sys\n{source}\nkeep_freed_memory()\nblock = b'x' * (1 << 28)\ndel block\n"
        "print(int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE'))\n"
    )
    resident = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout
    assert int(resident) > 1 << 28
