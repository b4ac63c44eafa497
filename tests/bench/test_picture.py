"""What a picture costs is told beside the plain ones around it."""

import allocator
import picture


def test_a_ratio_is_to_the_plain_pictures_just_before_and_after(monkeypatch):
    monkeypatch.setattr(picture, "KINDS", {"two": (2, {}), "four": (4, {})})
    monkeypatch.setattr(picture, "encoded", lambda clip, text: text)
    monkeypatch.setattr(picture, "composed", lambda model, clip, chain, settings: (f"{len(chain)} concepts", [], []))
    plain = iter([9, 10, 14, 6])  # the first is for what is done once only
    took = {"2 concepts": iter([9, 24]), "4 concepts": iter([9, 30])}
    monkeypatch.setattr(picture, "seconds", lambda model, *_, steps=None: next(took.get(model, plain)))
    assert picture.measure("a model", "plain", None, [*range(8)]) == {"two": 2.0, "four": 3.0, "spread": 2.33}


def test_memory_that_is_freed_can_be_kept_on_every_system():
    allocator.keep_freed_memory()
