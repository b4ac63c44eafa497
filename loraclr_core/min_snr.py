"""How much a noise level counts in a loss over predicted pictures."""

BOUNDS = 0.1, 5.0


def weight(signal_to_noise: float) -> float:
    """Return the signal-to-noise ratio within bounds.

    The upper bound is that of Min-SNR (arXiv 2303.09556). The lower one is there because the layout of a picture is
    decided where there is almost no signal.
    """
    return min(max(signal_to_noise, BOUNDS[0]), BOUNDS[1])
