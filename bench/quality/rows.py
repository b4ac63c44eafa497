"""Every row: this pack's methods and what they are compared with."""

from .methods import HEADLINE, VARIANTS
from .rivals import RIVALS

COMPARED = HEADLINE | RIVALS
ROWS = COMPARED | VARIANTS
