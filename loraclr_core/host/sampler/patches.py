"""Other packs' patches of a model, by names that a user can recognise."""

import re
from collections.abc import Iterable


def suspects(patches: Iterable[object]) -> str:
    """Return the subject of a sentence about one of these functions and objects, with their names."""
    names = ", ".join(dict.fromkeys(_name(patch) for patch in patches))
    return f"A patch of the model ({names})" if names else "A patch of the model"


def _name(patch: object) -> str:
    """Return the name of a function, or of an object's class, and its pack: the module from its folder on."""
    patch = getattr(patch, "func", patch)  # the function of a partial
    named = patch if hasattr(patch, "__qualname__") else type(patch)
    what = named.__qualname__.replace("<locals>.", "")
    # ComfyUI names the module of a pack by its path, with dots written as _x_.
    where = re.split(r"[/\\]", named.__module__)[-1].replace("_x_", ".")
    return f"“{what}” of {where}"
