"""The report on a training, in Markdown."""

from . import output
from .train import Trained

NAMES = {"concept": "the concept", "preservation": "preservation", "outside": "outside of the masks"}


def markdown(trained: Trained) -> str:
    settings = trained.settings
    lines = [
        f"# {settings.trigger}",
        "",
        f"{len(trained.losses)} steps on {len(trained.sources.pictures)} pictures, {trained.layers} layers of rank"
        f" {settings.rank}, in {trained.seconds:.0f} s. Saved as {trained.path}.",
        "",
        *(f"- {note}" for note in trained.notes),
        "| loss | mean of the last steps |",
        "| --- | --- |",
        *(f"| {NAMES[name]} | {value:.4g} |" for name, value in output.mean_losses(trained.losses).items()),
        "",
        "| caption | preserved |",
        "| --- | --- |",
        *(f"| {caption.concept} | {caption.plain} |" for caption in dict.fromkeys(trained.sources.captions)),
    ]
    return "\n".join(lines)
