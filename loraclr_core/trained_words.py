"""The phrase that a LoRA was trained on, from the metadata in its file and the words beside it.

Kohya's trainers, and those that build on them, write the training folders (`10_ohwx woman`: ten repeats of “ohwx
woman”), the regularisation folders and the number of captions with each tag, or the `class_tokens` of data sets that
were set up in a file. ai-toolkit writes its trigger word as such a folder. modelspec, model managers and sites write a
field of its own.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .words import LEAD_IN, prompt_syntax

# Fields that hold the trigger and nothing else, the most reliable first, spelled as by `_field`.
FIELDS = [
    "triggerphrase",
    "triggerphrases",
    "triggerwords",
    "triggerword",
    "activationtext",
    "activationtags",
    "activationwords",
    "trainedwords",
    "trainedword",
    "trigger",
    "triggers",
    "instanceprompt",
    "keywords",
]
_PREFIX = re.compile(r"^(modelspec|ss|ssmd|civitai)[._]")
_NOTHING = {"", "none", "null", "n/a", "-", "false", "true", "no", "yes", "[]", "{}"}

NEARLY_ALL = 0.9  # least share of captions with the trigger: it is forgotten in a few
AHEAD = 0.75  # the next tag has at most this share of the trigger's captions
FEW_CAPTIONS = 3  # with fewer captions, every tag is in nearly all of them
LONGEST_TAG = 4  # words; anything longer is a sentence
LONGEST_PHRASE = 500  # characters; anything longer is a description

# Tags that taggers give to any picture.
_ADJECTIVES = (
    r"((black|white|grey|gray|red|blue|green|brown|blonde|blond|pink|purple|orange|yellow|silver|golden|aqua|dark|light|pale"
    r"|multicolored|colored|long|short|medium|very|large|small|huge|open|closed|parted|bare|blunt|wavy|curly|straight"
    r"|upper|lower|full|cowboy|front|side|back|close-?up|simple|gradient|blurry|best|high|good|normal|low|worst|male|female) )*"
)
_GENERIC = re.compile(
    r"(\d+\+? ?|multiple |no )?(girl|boy|other|woman|women|man|men|person|people|human|humans|female|male|child|character)s?"
    r"|solo( focus)?|looking .+|facing .+|from (above|below|behind|side)|score \d.*|rating.*|.+ (text|username|background)"
    rf"|{_ADJECTIVES}(hair|eyes?|bangs|breasts|skin|lips|mouth|face|ears|teeth|nose|body|shoulders|legs|arms)"
    rf"|{_ADJECTIVES}(shirt|dress|skirt|gloves|boots|shoes|jacket|pants|hat|ribbon|bow|collar|sleeves|jewelry|earrings)"
    rf"|{_ADJECTIVES}(background|focus|quality|view|shot|portrait|close-?up)"
    r"|ahoge|blush|smil(e|ing)|standing|sitting|lying|holding|navel|cleavage|thighhighs|indoors|outdoors|day|night|sky"
    r"|safe|sensitive|questionable|explicit|general|masterpiece|highres|absurdres|lowres|newest|recent|realistic"
    r"|photorealistic|photo( \(medium\))?|3d|anime|monochrome|gr[ae]yscale|comic|sketch|lineart|traditional media|signature"
    r"|watermark|artist name|simple|photograph|picture|image|illustration|painting|drawing"
)
# Names of folders that do not name a subject.
_GENERIC_FOLDER = re.compile(
    r"(new |my |training |train )?(img|image|pic|picture|photo|data|dataset|train|training|input|instance|subject|lora|concept"
    r"|character|folder|crop|cropped|resize|resized|raw|all|main|default|close|closeup|fullbody)s?|[\s\d.x×-]*|v[\d.]+"
)


class TrainedWords(NamedTuple):
    """The trigger found in a file's metadata."""

    # In ComfyUI's prompt syntax; "" where the file does not give one.
    trigger: str
    # Where in the file it was found.
    source: str
    # Other candidates from the file, for a user who must choose.
    others: list[str]


class Dataset(NamedTuple):
    """The training data of a LoRA, without regularisation."""

    # The phrase of each folder.
    folders: dict[str, str]
    # tags[folder][tag]: the number of captions with the tag.
    tags: dict[str, Counter[str]]
    # The number of pictures in each folder; 0 where it is unknown.
    images: dict[str, int]


def trained_words(metadata: Mapping[str, str]) -> TrainedWords:
    """Return the phrase that a LoRA was trained on, where its file gives one.

    A field of its own takes precedence; then the name of the training folder, unless there are captions without it;
    then the only tag that is in nearly all captions and is not a generic one.
    """
    if fields := list(_fields(metadata)):
        first = fields[0][1][0]
        every = dict.fromkeys(phrase for _, phrases in fields for phrase in phrases)
        return TrainedWords(first, fields[0][0], [phrase for phrase in every if phrase != first])
    dataset = _dataset(metadata)
    phrases = {_spell(phrase): folder for folder, phrase in dataset.folders.items() if _has_phrase(dataset, folder)}
    if len(phrases) == 1:
        (folder,) = phrases.values()
        return TrainedWords(prompt_syntax(dataset.folders[folder]), f"the training folder “{folder}”", [])
    common = _common_tags(dataset)
    if not phrases and (tag := _find_prominent_tag(dataset, common)):
        return TrainedWords(prompt_syntax(tag), "nearly all captions", [])
    others = [
        *dict.fromkeys(dataset.folders.values()),
        *(tag for tag, _ in common[:3] if len(tag.split()) <= LONGEST_TAG),
    ]
    return TrainedWords("", "", [prompt_syntax(phrase) for phrase in dict.fromkeys(others)])


def class_word_in(metadata: Mapping[str, str]) -> str:
    """Return the class word that Train Concept LoRA wrote into a file, in ComfyUI's prompt syntax; "" for other files."""
    value = _object(metadata.get("loraclr.training")).get("class_word")
    return prompt_syntax(value) if isinstance(value, str) and len(value) <= LONGEST_PHRASE else ""


# --- Fields of their own ---------------------------------------------------------------------------------------------


def _fields(metadata: Mapping[str, str]) -> Iterable[tuple[str, list[str]]]:
    """Yield the keys that hold triggers, the most reliable first, with their phrases."""
    keys = sorted((key for key in metadata if _field(key) in FIELDS), key=lambda key: FIELDS.index(_field(key)))
    for key in keys:
        phrases = _phrases(metadata[key])
        if _field(key) == "instanceprompt":
            phrases = [LEAD_IN.sub("", phrase) for phrase in phrases]
        if phrases:
            yield key, phrases


def _field(key: str) -> str:
    """Return a key in one spelling without its prefix and file: `ss_trigger_words`, `Trigger Words of x` → `triggerwords`."""
    return re.sub(r"[^a-z]", "", _PREFIX.sub("", key.lower().partition(" of ")[0]))


def _phrases(value: str) -> list[str]:
    """Return the phrases of a field, which holds one phrase or a JSON list of them."""
    listed = _json(value)
    values = listed if isinstance(listed, list) else [listed if isinstance(listed, str) else value]
    stripped = [value.strip() for value in values if isinstance(value, str) and len(value) <= LONGEST_PHRASE]
    phrases = [prompt_syntax(value) for value in stripped if value.lower() not in _NOTHING]
    return [phrase for phrase in dict.fromkeys(phrases) if phrase]


# --- Folders and captions --------------------------------------------------------------------------------------------


def _dataset(metadata: Mapping[str, str]) -> Dataset:
    """Return the folders and captions, without regularisation."""
    folders, counts = _object(metadata.get("ss_dataset_dirs")), _object(metadata.get("ss_tag_frequency"))
    subsets = {
        str(subset["image_dir"]): subset for subset in _subsets(metadata.get("ss_datasets")) if subset.get("image_dir")
    }
    left_out = {
        *_object(metadata.get("ss_reg_dataset_dirs")),
        *(name for name, subset in subsets.items() if subset.get("is_reg")),
    }
    # A folder that was given twice also appears as “name (2)”.
    every = dict.fromkeys([*folders, *counts, *subsets])
    names = [name for name in every if not left_out & {name, re.sub(r" \(\d+\)$", "", name)}]
    tags = {name: _tags(counts.get(name)) for name in names}
    phrases = {name: _spell_like_captions(_phrase(name, subsets.get(name, {})), tags[name]) for name in names}
    images = {name: _number(folders.get(name), "img_count") for name in names}
    return Dataset({name: phrase for name, phrase in phrases.items() if phrase}, tags, images)


def _subsets(text: str | None) -> list[dict]:
    datasets = _json(text or "[]")
    datasets = datasets if isinstance(datasets, list) else []
    lists = [dataset.get("subsets") for dataset in datasets if isinstance(dataset, dict)]
    return [subset for subsets in lists if isinstance(subsets, list) for subset in subsets if isinstance(subset, dict)]


def _phrase(folder: str, subset: dict) -> str:
    """Return a folder's phrase: its class tokens, or its name after the repeats; "" where that is generic."""
    repeats, _, name = folder.partition("_")
    tokens = subset.get("class_tokens")
    phrase = tokens if isinstance(tokens, str) and tokens.strip() else name if repeats.strip().isdigit() else ""
    generic = _GENERIC_FOLDER.fullmatch(_spell(phrase)) or _GENERIC.fullmatch(_spell(phrase))
    return "" if generic else phrase.strip()


def _spell_like_captions(phrase: str, tags: Counter[str]) -> str:
    """Return a folder's phrase, with spaces for underscores unless a caption has these or there are no captions."""
    has_it = not tags or any(phrase.lower() in tag.lower() for tag in tags)
    return phrase if has_it else phrase.replace("_", " ")


def _tags(counts: object) -> Counter[str]:
    """Return the number of captions with each tag, in one spelling."""
    totals: Counter[str] = Counter()
    for tag, count in counts.items() if isinstance(counts, dict) else ():
        if type(count) is int and count > 0 and (spelled := LEAD_IN.sub("", " ".join(tag.split()))):
            totals[spelled] += count
    return totals


def _has_phrase(dataset: Dataset, folder: str) -> bool:
    """Return whether a folder's captions have its phrase. Without captions, the phrase is each picture's caption."""
    tags = dataset.tags[folder]
    needed = NEARLY_ALL * _captions(dataset, folder)
    return not tags or all(_captions_with(word, tags) >= needed for word in _split(dataset.folders[folder]))


def _captions_with(word: str, tags: Counter[str]) -> int:
    return sum(count for tag, count in tags.items() if word in _split(tag))


def _captions(dataset: Dataset, folder: str) -> int:
    """Return how many captions a folder has: as many as pictures or, if unknown, as its most common tag."""
    return dataset.images[folder] or max(dataset.tags[folder].values(), default=0)


def _common_tags(dataset: Dataset) -> list[tuple[str, int]]:
    """Return the tags that are not generic, with their number of captions, the most common first."""
    every = sum(dataset.tags.values(), Counter())
    return [(tag, count) for tag, count in every.most_common() if not _GENERIC.fullmatch(_spell(tag))]


def _find_prominent_tag(dataset: Dataset, common: list[tuple[str, int]]) -> str | None:
    captions = sum(_captions(dataset, folder) for folder in dataset.tags)
    if not common or captions < FEW_CAPTIONS:
        return None
    (tag, count), following = common[0], common[1][1] if len(common) > 1 else 0
    stands_out = count >= NEARLY_ALL * captions and following <= AHEAD * count and len(tag.split()) <= LONGEST_TAG
    return tag if stands_out else None


def _spell(phrase: str) -> str:
    """Return a phrase in one spelling: `Ohwx_Woman` → `ohwx woman`."""
    return " ".join(phrase.replace("_", " ").replace("\\", "").lower().split())


def _split(phrase: str) -> set[str]:
    return set(re.findall(r"[^\s,.()]+", _spell(phrase)))


# --- JSON ------------------------------------------------------------------------------------------------------------


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also a number of thousands of digits, or thousands of brackets
        return None


def _object(text: str | None) -> dict:
    value = _json(text or "{}")
    return value if isinstance(value, dict) else {}


def _number(entry: object, key: str) -> int:
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if type(value) is int and value > 0 else 0
