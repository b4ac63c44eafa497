"""The settings of CLoRA; the node's inputs take their defaults from here."""

from dataclasses import dataclass, field
from typing import Literal

from ...sampler.areas import AreaSettings
from ...sampler.separation import UpdateUnit

GradientMemory = Literal["one branch at a time", "all at once"]
GRADIENT_MEMORY: tuple[GradientMemory, ...] = ("one branch at a time", "all at once")
Surroundings = Literal["plain", "composed (paper)"]
SURROUNDINGS: tuple[Surroundings, ...] = ("plain", "composed (paper)")
IfUnclear = Literal["go on", "stop after the plain take"]
IF_UNCLEAR: tuple[IfUnclear, ...] = ("go on", "stop after the plain take")


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """When the latent is moved to separate the concepts, and how far."""

    # Size of one update, in `unit`; 0 for none.
    strength: float = 0.0
    # *relative*: root mean square of the move as a share of the latent's size, which is the same for every model.
    # *absolute (paper)*: α of z ← z − α ∇L, z as the model sees it; 20 for SD1.5, 0.02 in a public SDXL port.
    unit: UpdateUnit = "relative"
    # The part of the schedule with updates, in ComfyUI's percents: 0 is the first noise level, 1 the last.
    start: float = 0.0
    end: float = 0.5
    # At these steps of a run, counted from 0, an update is followed by `refine_repeats` more.
    refine_steps: tuple[int, ...] = (0, 10, 20)
    refine_repeats: int = 0
    # τ of the contrastive loss.
    temperature: float = 0.5
    # One branch at a time needs less memory but more time.
    gradient_memory: GradientMemory = "all at once"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of CLoRA."""

    updates: UpdateSettings = field(default_factory=UpdateSettings)
    areas: AreaSettings = field(default_factory=AreaSettings)
    # The surroundings of a concept's area in its branch: the plain picture, or the picture with all concepts.
    surroundings: Surroundings = "plain"
    # How many concepts a step evaluates, in turn; 0 for all.
    concepts_per_step: int = 0
    # The plain picture is evaluated at every n-th step and the last one; its prediction is held in between.
    plain_every: int = 1
    # What to do where the plain picture does not show clearly where a concept goes.
    if_unclear: IfUnclear = "go on"
