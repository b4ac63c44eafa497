"""The report on a training, in Markdown."""

from dataclasses import asdict

from . import beside, output
from .settings import TrainSettings
from .train import Trained

NAMES = {
    "concept": "the concept",
    "preservation": "preservation",
    "outside": "outside the masks",
    "beside": "beside other things",
}


def markdown(trained: Trained) -> str:
    settings, sources = trained.settings, trained.sources
    lines = [
        f"# {settings.trigger}",
        "",
        f"{len(trained.losses)} steps on {_pictures(trained)}, {trained.layers} layers of rank {settings.rank}, in"
        f" {trained.seconds:.0f} s. Saved as {trained.path}.",
        "",
        *(f"- {note}" for note in trained.notes),
        "",
        f"| loss | mean of the last {output.RECENT} steps with it |",
        "| --- | --- |",
        *(f"| {NAMES[name]} | {value:.4g} |" for name, value in output.mean_losses(trained.losses).items()),
        "",
        "| caption | preserved |" if settings.preservation else "| caption |",
        "| --- | --- |" if settings.preservation else "| --- |",
        *(
            f"| {' | '.join(_escape(text) for text in caption[: 2 if settings.preservation else 1])} |"
            for caption in dict.fromkeys(sources.captions)
        ),
        "",
        f"Settings that are not the defaults: {_changed(settings)}.",
    ]
    return "\n".join(lines)


def _escape(text: str) -> str:
    """Return a text that does not end a table's cell."""
    return text.replace("|", r"\|")


def _pictures(trained: Trained) -> str:
    sources = trained.sources
    masked = sum(subject is not None for subject in sources.subjects)
    words = [f"{len(sources.pictures)} pictures{' with their mirrored copies' if trained.settings.flip else ''}"]
    words += [f"{masked} of them with masks"] if masked else []
    words += [f"{len(sources.others)} pictures of others"] if sources.others else []
    others = beside.names(trained.settings)
    words += [f"{beside.PAINTED} painted pictures of it beside {', '.join(others)}"] if others else []
    return ", ".join(words)


def _changed(settings: TrainSettings) -> str:
    defaults = asdict(TrainSettings(trigger=settings.trigger, class_word=settings.class_word))
    changed = [f"{name} {value}" for name, value in asdict(settings).items() if value != defaults[name]]
    return ", ".join(changed) or "none"
