"""The states of trainings on disk, from which they go on exactly as without a break.

There is one file per training, named by the digest of all that it depends on; the number of steps is not part of that. A
file is written whole or not at all and carries a digest of its own content; a damaged one is named, never used.
"""

import json
from pathlib import Path

import folder_paths
from safetensors import SafetensorError, safe_open

from .. import content
from .identity import Identity
from .learner import Learner

LIMIT = 16 * 2**30  # bytes in total; the least recently used states are deleted first


def folder() -> Path:
    """Return the folder of the states."""
    return Path(folder_paths.get_user_directory()) / "loraclr_training"


def path(identity: Identity) -> Path:
    """Return the file of a training's state, whether or not it exists."""
    return folder() / f"{identity.digest}.safetensors"


def save(learner: Learner, identity: Identity, name: str) -> None:
    """Write the state of a training, then delete old states beyond LIMIT. name: of its LoRA. Raises OSError."""
    header = {"name": name, "parts": json.dumps(identity.parts), "steps": str(learner.step)}
    content.write(path(identity), learner.state(), header)
    content.prune(folder(), LIMIT, path(identity))


def restore(learner: Learner, identity: Identity, name: str) -> list[str]:
    """Set the learner to the saved state, if there is one, and return notes on that."""
    file = path(identity)
    if not file.exists():
        return _why_anew(identity, name)
    try:
        tensors, _ = content.read(file)
        learner.set_state(tensors)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        return [f"Started anew: the state {file} is damaged ({error}) and was not used."]
    file.touch()
    return [f"Went on from step {learner.step}."]


def _why_anew(identity: Identity, name: str) -> list[str]:
    """Return what changed since the last training of the same name, if one left a state."""
    for file in reversed(content.files(folder())):
        try:
            with safe_open(file, framework="pt") as opened:
                header = opened.metadata()
            if header["name"] != name:
                continue
            changes = identity.changes_from(json.loads(header["parts"]))
            return [
                f"Started anew, not from step {header['steps']} of the last training of {name}: {'; '.join(changes)}."
            ]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            continue
    return []
