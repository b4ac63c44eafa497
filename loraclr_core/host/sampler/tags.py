"""Tags that mark which branch a conditioning entry belongs to: a sampler node writes them, its model reads them.

Extra keys of an entry survive ComfyUI's nodes, ControlNet and mask nodes among them, and its samplers. One of them is
for other models, which would take the branches' entries for parts of one prompt and average them.
"""

import uuid
from typing import NamedTuple, Never

from comfy.conds import CONDConstant

from .evaluation import KEY, Call, Role


class Tag(NamedTuple):
    """Marks a conditioning entry with the sampler node that made it, its role and its branch."""

    owner: str
    role: Role
    branch: int


class Guard(CONDConstant):
    """A condition that no model can be given: its own takes it away, in any other it ends the run."""

    def process_cond(self, batch_size: int, **kwargs) -> Never:
        """Raise ValueError, with the wire to change. ComfyUI calls this before every evaluation of a model."""
        raise ValueError(
            f"The {self.cond} conditioning is from CLoRA Attention Contrast Sampler, but the model is not. Connect that node's"
            " MODEL output to the model input of the node that samples (or of its guider). To sample with another model,"
            " connect CLIP Text Encode to positive and negative instead."
        )


class Tags:
    """The tags of one sampler node."""

    def __init__(self, branches: int):
        self.owner = uuid.uuid4().hex
        self.branches = branches

    def of(self, role: Role, branch: int) -> dict[str, Tag | dict[str, Guard]]:
        """Return the extra keys for a conditioning entry of this branch."""
        return {KEY: Tag(self.owner, role, branch), "model_conds": {KEY: Guard(role)}}

    def check(self, conds: dict[str, list[dict]]) -> None:
        """Raise ValueError where the sampler was given anything but this node's conditioning."""
        for name, entries in conds.items():
            tags: list[Tag | None] = [entry.get(KEY) for entry in entries]
            if not any(tags) and name not in ("positive", "middle", "negative"):
                continue  # a guider's own addition, such as Perp-Neg's empty prompt: it runs on the plain model
            if any(tag is None or tag.owner != self.owner for tag in tags):
                raise ValueError(
                    f"The {name} conditioning is not from the CLoRA Attention Contrast Sampler that made this model."
                    " Connect that node's positive and negative outputs (through ControlNet or mask nodes if you like), and"
                    " put all text into its prompts."
                )
            missing = set(range(self.branches)) - {entry[KEY].branch for entry in entries}
            if missing:
                raise ValueError(
                    f"The {name} conditioning lacks {len(missing)} of {self.branches} branches: a node on the way dropped"
                    " them. Connect the output of CLoRA Attention Contrast Sampler without that node."
                )
            if any("area" in entry for entry in entries):
                raise ValueError(
                    f"The {name} conditioning is limited to an area, but CLoRA reads attention over the whole picture. Use"
                    " a mask instead (Conditioning Set Mask with set_cond_area “default”), or masks of the concepts."
                )

    def call(self, cond: list[dict] | None) -> Call:
        """Return a list of conditioning that ComfyUI asks predictions for, split by branch."""
        tags = [entry.get(KEY) for entry in cond or []]
        if cond is None or not any(tags):
            return Call(None, [cond])
        if any(tag is None or tag.owner != self.owner for tag in tags):
            raise ValueError("Another node mixes conditioning of its own into a CLoRA run; remove that node.")
        branches = [
            [_without_guard(entry) for entry in cond if entry[KEY].branch == branch] for branch in range(self.branches)
        ]
        return Call(cond[0][KEY].role, [*branches])


def _without_guard(entry: dict) -> dict:
    return {**entry, "model_conds": {key: cond for key, cond in entry["model_conds"].items() if key != KEY}}
