"""The stages that make the characters' weights, each one command and each going on where it was stopped; and a look at them."""

import sys

import torch

from . import autoencoder, base, judge, look, loras

STAGES = {
    "autoencoder": autoencoder.run,
    "decoder": autoencoder.run_decoder,
    "base": base.run,
    "judge": judge.run,
    "loras": loras.run,
    "look": look.run,
}


def main(arguments: list[str]) -> None:
    """Run the named stage, up to so many steps in all."""
    stage, *rest = arguments or [""]
    if stage not in STAGES:
        sys.exit(
            f"characters: there is no stage “{stage}”; choose from {', '.join(STAGES)}, then how many steps in all"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    STAGES[stage](device, *(int(value) for value in rest))
