"""The report of Preservation Scores, in Markdown: a sentence per score, then a table with a bar chart."""

from .scores import Score, Scores

BAR_LENGTH = 20


def summary(scores: Scores) -> str:
    """Return the scores, one per line."""
    named = {"KPS": scores.kps, "kept": scores.kept, "identity": scores.identity, "diversity": scores.diversity}
    return "\n".join(f"{name} {score}" for name, score in named.items() if score)


def markdown(scores: Scores, encoder: str, references: int) -> str:
    """Return the report of scores from an encoder's vectors, over a number of references."""
    counts = f"{len(scores.pairs)} pictures with the trigger and as many without, {references} references"
    sections = [
        "# Preservation scores",
        "\n".join(f"- {sentence}" for sentence in _sentences(scores)),
        _table(scores),
        f"Encoder: **{encoder}**. {counts}. Scores of different encoders cannot be compared.",
        "## How to read this",
        "\n".join(f"- {note}" for note in _notes(scores)),
    ]
    return "\n\n".join(sections)


def _sentences(scores: Scores) -> list[str]:
    """Return what each score says, in plain words."""
    sentences = [
        f"**KPS {scores.kps}**: this far apart are pictures with and without the trigger. Higher is better; at 0 the"
        " trigger changes nothing."
    ]
    if scores.kept:
        sentences.append(
            f"**Kept {scores.kept}**: this much alike are pictures without the trigger and the base model's. Higher is"
            " better; at 1 the LoRA leaves them as they were."
        )
    else:
        sentences.append(
            "**Kept** is not measured: connect pictures of the model without the LoRA, from the same prompts and seeds as"
            " without_trigger, to base."
        )
    if scores.identity:
        sentences.append(
            f"**Identity {scores.identity}**: this much alike are pictures with the trigger and the references. Higher"
            f" is better; without the trigger it is {scores.identity_without}."
        )
    else:
        sentences.append("**Identity** is not measured: connect pictures of the concept to references.")
    if scores.diversity:
        base = f"; the base model's is {scores.base_diversity}" if scores.base_diversity else ""
        sentences.append(
            f"**Diversity {scores.diversity}**: this far apart are the pictures without the trigger from one another"
            f"{base}. At 0 all of them look the same."
        )
    else:
        sentences.append("**Diversity** is not measured: it needs two pictures or more.")
    return sentences


def _table(scores: Scores) -> str:
    rows = [
        ("KPS", scores.kps),
        ("kept", scores.kept),
        ("identity", scores.identity),
        ("identity without the trigger", scores.identity_without),
        ("diversity", scores.diversity),
        ("diversity of the base", scores.base_diversity),
    ]
    lines = [["score", "value", "± 95 %", "0 to 1"], ["---"] * 4]
    lines += [[name, f"{score.value:.3f}", _margin(score), f"`{_bar(score)}`"] for name, score in rows if score]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _margin(score: Score) -> str:
    return "–" if score.margin is None else f"{score.margin:.3f}"


def _bar(score: Score) -> str:
    """Return a bar from 0 to the score: full up to the interval, half-toned within it."""
    margin = score.margin or 0.0
    low, high = (
        round(BAR_LENGTH * min(1.0, max(0.0, value))) for value in (score.value - margin, score.value + margin)
    )
    return "█" * low + "▒" * (high - low) + "░" * (BAR_LENGTH - high)


def _notes(scores: Scores) -> list[str]:
    notes = [
        "▒ is the 95 % interval over the pictures; connect more of them to narrow it.",
        "KPS is 1 − harmonic mean of (cos + 1) / 2 over the pairs. This formula is read from the figures in the paper (CAT,"
        " arXiv 2404.07554). KPS compares the LoRA with itself: one that spoils every picture without the trigger can still"
        " score high. Read it together with kept.",
        "Kept and identity are cosine similarities. Unrelated pictures often have 0.4 or more, depending on the encoder, so"
        " compare LoRAs with one another.",
        f"Most alike with and without the trigger: pair {_place(scores.pairs, max)}.",
    ]
    if scores.base_pairs:
        notes.append(f"Least like the base model's: pair {_place(scores.base_pairs, min)}.")
    return notes


def _place(cosines: list[float], which) -> str:
    """Return the place, counted from 1, and the similarity of the pair that stands out."""
    cosine = which(cosines)
    return f"{cosines.index(cosine) + 1} ({cosine:.3f})"
