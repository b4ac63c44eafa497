"""The settings of a training; the node's inputs take their defaults from here."""

from dataclasses import dataclass
from typing import Literal

from ...train.objective import Weighting

PreservedPrompts = Literal["class, one in four empty", "class (paper)"]
PRESERVED_PROMPTS: tuple[PreservedPrompts, ...] = ("class, one in four empty", "class (paper)")
LayerChoice = Literal["attention and feed-forward", "attention (paper)", "all linear"]
LAYER_CHOICES: tuple[LayerChoice, ...] = ("attention and feed-forward", "attention (paper)", "all linear")
Checkpointing = Literal["automatic", "on", "off"]
CHECKPOINTING: tuple[Checkpointing, ...] = ("automatic", "on", "off")
IfThere = Literal["go on", "anew"]
IF_THERE: tuple[IfThere, ...] = ("go on", "anew")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What decides, with the data and the number of steps, what is learned."""

    trigger: str
    # "" where the trigger is removed from captions and nothing put in its place.
    class_word: str
    learning_rate: float = 1e-4
    # alpha is the same.
    rank: int = 16
    # α of CAT; 0 for plain training.
    preservation: float = 1.0
    preserve_prompts: PreservedPrompts = "class, one in four empty"
    # Preserve in one of so many steps.
    preserve_every: int = 1
    # β, the weight of the term outside the masks. 0: in trials, more of it redrew other things more often.
    outside: float = 0.0
    weighting: Weighting = "Min-SNR 5"
    # What the subject is shown beside, with commas between; "" for nothing but its own pictures.
    beside: str = "man, woman, dog, car"
    # Pictures of a step.
    batch: int = 1
    layers: LayerChoice = "attention and feed-forward"
    # Decay of the average of the factors that is saved; 0 for the factors themselves.
    ema: float = 0.99
    # The share of rows whose caption is “photo of a {trigger}” alone.
    caption_dropout: float = 0.0
    # Train on mirrored pictures, too.
    flip: bool = False
    # Pictures with more pixels than this squared are scaled down; 0 for what the model was trained on.
    resolution: int = 0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How long a training goes on, and what it leaves behind on the way."""

    steps: int = 1000
    checkpointing: Checkpointing = "automatic"
    # Steps between two saves; 0 for the end only.
    save_every: int = 250
    # How many files of earlier steps are kept.
    keep: int = 4
    # Steps between two previews; 0 for none.
    preview_every: int = 250
    preview_prompts: tuple[str, ...] = ("photo of a {trigger}", "photo of a {class}")
    if_there: IfThere = "go on"
