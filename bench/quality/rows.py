"""Every row: this pack's methods and what they are compared with."""

from shapes.methods import HEADLINE, VARIANTS
from shapes.rivals import RIVALS

COMPARED = HEADLINE | RIVALS
ROWS = COMPARED | VARIANTS
