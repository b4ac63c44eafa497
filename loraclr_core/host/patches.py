"""What other packs have put on a model, by names that a user can recognise."""

import re
from collections.abc import Iterable


def names(patches: Iterable[object]) -> str:
    """Return these functions and objects by name, each once."""
    return " and ".join(dict.fromkeys(_name(patch) for patch in patches))


def _name(patch: object) -> str:
    """Return the name of a function, or of an object's class, and its pack: the module from its folder on."""
    patch = getattr(patch, "func", patch)  # of a partial
    named = patch if hasattr(patch, "__qualname__") else type(patch)
    what = named.__qualname__.replace("<locals>.", "")
    # The host names the module of a pack by its path, with dots written as _x_.
    where = re.split(r"[/\\]", named.__module__)[-1].replace("_x_", ".")
    return f"“{what}” of {where}"
