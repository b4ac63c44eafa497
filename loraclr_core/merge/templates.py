"""Capture prompts: templates in which `{trigger}` stands for the trigger of each concept in turn."""

from ..braces import PromptError, named_in
from ..concept import Concept


def check_template(template: str, concepts: list[Concept]) -> None:
    """Raise PromptError for a capture prompt without `{trigger}`, or with a concept's name in braces."""
    if "{trigger}" not in template:
        raise PromptError(
            f"The capture prompt “{template}” lacks {{trigger}}: put it where the concept's trigger belongs."
        )
    others = template.replace("{trigger}", "")
    if named := named_in(others, ["trigger", *(concept.name for concept in concepts)]):
        raise PromptError(
            f"The capture prompt “{template}” has {named}, which stands for nothing there: write {{trigger}} for the trigger"
            " of each concept in turn, and plain words for the rest."
        )
