"""How a workflow is described: what it runs on, and the methods that add what several workflows share."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from families import Family, File, Pose, hub
from graph import Graph, Node, NodeInfos, Output
from layout import COLLAPSED, GAP, Columns


class Subject(NamedTuple):
    """A concept LoRA: its name in prompts, its file, the phrase it was trained on, plain words for it, and a folder of
    pictures to train it on.
    """

    name: str
    file: str
    trigger: str
    class_word: str
    pictures: str = ""


class Models(NamedTuple):
    """What the workflows run on, and settings that fit it.

    url: where the checkpoint can be had. training: what a training sets beside the node's defaults.
    """

    checkpoint: str
    url: str
    subjects: tuple[Subject, ...]
    scene: str
    side: int
    steps: int
    capture_steps: int
    cfg: float
    training: dict[str, Any]

    def prompt(self, subjects: Iterable[Subject], named: Callable[[Subject], str]) -> str:
        return f"a photo of {' and '.join(f'a {named(each)}' for each in subjects)} {self.scene}"


ENCODER = hub("Comfy-Org/sigclip_vision_384", "sigclip_vision_patch14_384.safetensors", "clip_vision")
POSE_PICTURE = "my_poses.png"
SCORED = 4  # pictures of each kind that a training is scored by


def by_trigger(subject: Subject) -> str:
    return subject.trigger


def in_braces(subject: Subject) -> str:
    return f"{{{subject.name}}}"


class Description:
    """One workflow being described, for some models. The methods add what several workflows share."""

    def __init__(self, infos: NodeInfos, models: Models):
        self.graph = Graph(infos)
        self.columns = Columns(self.graph)
        self.column = self.columns.column
        self.group = self.columns.group
        self.models = models
        self.pair: Sequence[Subject] = models.subjects[:2]

    def add(self, type: str, height: int, inputs: dict[str, Any], title: str | None = None) -> Node:
        """Add a node below the last one. height: with its title; COLLAPSED for a node that nobody needs to see."""
        return self.graph.add(type, self.columns.place(height), inputs, title, collapsed=height == COLLAPSED)

    def note(self, height: int, what: str, *changes: str, missing: str = "SD1.5 model and LoRAs") -> None:
        """Say what the workflow does, and what to change first: in headings, whose text is large enough at any zoom.

        Last in its column: older pages make it as tall as its text.
        """
        steps = [f"## {number}. {change}" for number, change in enumerate(changes, 1)]
        text = "\n\n".join([f"### {what}", *steps, f"### Red means missing: choose your own {missing}"])
        self.graph.note("What to change first", text, self.columns.place(height))
        self.columns.top += GAP

    def begin(self, width: int, what: str, *changes: str, **note: Any) -> None:
        """Add a column with the checkpoint and a note. note: further arguments of it."""
        self.column(width)
        self.model()
        self.note(405, what, *changes, **note)

    def model(self, pictures: int = 1) -> None:
        """Load the checkpoint, and add the empty pictures that are sampled."""
        models = self.models
        with self.group("Model"):
            loaded = self.add("CheckpointLoaderSimple", 190, {"ckpt_name": models.checkpoint})
            size = {"width": models.side, "height": models.side, "batch_size": pictures}
            self.latent = self.add("EmptyLatentImage", 175, size)["LATENT"]
        if models.url:
            loaded.offer(models.checkpoint, models.url, "checkpoints")
        self.patched = {"model": loaded["MODEL"], "clip": loaded["CLIP"]}
        self.vae = loaded["VAE"]

    def family(self, family: Family) -> None:
        """Load a family's files, and add the empty picture that is sampled and the family's two characters."""
        with self.group("Model"):
            if family.vae is None:
                loaded = self.load("CheckpointLoaderSimple", 190, [family.model], "ckpt_name")
                model, clip, self.vae = loaded["MODEL"], loaded["CLIP"], loaded["VAE"]
            else:
                names = ("clip_name",) if len(family.encoders) == 1 else ("clip_name1", "clip_name2")
                kind = "CLIPLoader" if len(names) == 1 else "DualCLIPLoader"
                text = {"type": family.encoder_type, "title": "Text encoder"}
                model = self.load("UNETLoader", 140, [family.model], "unet_name", weight_dtype="default")["MODEL"]
                clip = self.load(kind, 175 + 35 * (len(names) - 1), family.encoders, *names, **text)["CLIP"]
                self.vae = self.load("VAELoader", 141, [family.vae], "vae_name")["VAE"]
            if family.shift is not None:
                values = {"model": model, "shift": family.shift}
                model = self.add("ModelSamplingAuraFlow", COLLAPSED, values)["MODEL"]
            size = {"width": family.side, "height": family.side, "batch_size": 1}
            self.latent = self.add(family.latent, COLLAPSED, size)["LATENT"]
        self.patched = {"model": model, "clip": clip}
        self.pair = [
            Subject(name, f"my_{name}_lora.safetensors", f"{rare} {name}", name)
            for rare, name in zip(("sks", "zwx"), family.words.characters, strict=True)
        ]

    def load(
        self, loader: str, height: int, files: Sequence[File], *names: str, title: str | None = None, **values: str
    ) -> Node:
        """Add a loader of these files. names: of its inputs, one for each."""
        chosen = {name: file.name for name, file in zip(names, files, strict=True)}
        loaded = self.add(loader, height, chosen | values, title)
        for file in files:
            loaded.offer(*file)
        return loaded

    def concepts(self, subjects: Iterable[Subject], masks: Iterable[Output] = ()) -> Output:
        """Chain the concepts, and return the list of all."""
        given = list(masks)
        chained: dict[str, Output] = {}
        with self.group("Concepts"):
            for row, subject in enumerate(subjects):
                values = {"lora_name": subject.file, "trigger": subject.trigger, "class_word": subject.class_word}
                mask = {"mask": given[row]} if given else {}
                concept = self.add("LoRACLR_LoadConceptLoRA", 409, {**values, **mask, **chained})
                chained = {"concepts": concept["concepts"]}
        return chained["concepts"]

    def prompts(
        self, height: int, clip: Output, text: str | Output, title: str = "Prompt: the triggers"
    ) -> dict[str, Output]:
        """Add the prompt of an ordinary model and an empty negative one."""
        positive = self.add("CLIPTextEncode", height, {"text": text, "clip": clip}, title)
        negative = self.add("CLIPTextEncode", COLLAPSED, {"text": "", "clip": clip}, "Negative prompt")
        return {"positive": positive["CONDITIONING"], "negative": negative["CONDITIONING"]}

    def sampled(
        self, height: int, seed: int | Output, sampled_from: dict[str, Output], **settings: Any
    ) -> tuple[Output, Output]:
        """Sample and decode; return latent and picture. settings: of the sampler, if not those of the models."""
        values = {"steps": self.models.steps, "cfg": self.models.cfg, "sampler_name": "euler", "scheduler": "normal"}
        values |= {"latent_image": self.latent, "seed": seed, **settings}
        sampled = self.add("KSampler", height, {**values, **sampled_from})
        decoded = self.add("VAEDecode", COLLAPSED, {"samples": sampled["LATENT"], "vae": self.vae})
        return sampled["LATENT"], decoded["IMAGE"]

    def ordinary(self, seed: Output, patched: dict[str, Output], prompt: Output) -> Output:
        """Sample an ordinary model, all out of sight; return the picture. patched: its model and clip."""
        prompts = self.prompts(COLLAPSED, patched["clip"], prompt)
        return self.sampled(COLLAPSED, seed, {"model": patched["model"], **prompts})[1]

    def save(self, height: int, images: Output, prefix: str, title: str = "Picture") -> None:
        self.add("SaveImage", height, {"images": images, "filename_prefix": f"loraclr/{prefix}"}, title)

    def merge(self, height: int, concepts: Output, **settings: Any) -> Node:
        """Add a merge. settings: beside the defaults and those of the models."""
        values = {
            **self.patched,
            "concepts": concepts,
            "latent": self.latent,
            "capture_steps": self.models.capture_steps,
        }
        return self.add("LoRACLR_Merge", height, values | settings)

    def train(self, subject: Subject, **concepts: Output) -> Node:
        """Train a concept on its folder of pictures. concepts: those before it."""
        folder = self.add("LoadImageTextDataSetFromFolder", 165, {"folder": subject.pictures}, "Pictures and captions")
        values = {**self.patched, "vae": self.vae, "images": folder["images"], "captions": folder["texts"]}
        values |= {"trigger": subject.trigger, "class_word": subject.class_word}
        return self.add("LoRACLR_TrainConcept", 850, {**values, **self.models.training, **concepts})

    def scores(self, **pictures: Output) -> None:
        """Score a training by its pictures: muted, since few have a model that compares pictures."""
        with self.group("Scores: need CLIP vision"):
            encoder = self.load("CLIPVisionLoader", 120, [ENCODER], "clip_name")
            scores = self.add("LoRACLR_PreservationScores", 260, {"clip_vision": encoder["CLIP_VISION"], **pictures})
            report = self.add("PreviewAny", 500, {"source": scores["report"]}, "Report")
        for node in (encoder, scores, report):
            node.mute()

    def clora(self, height: int, concepts: Output, **settings: Any) -> dict[str, Output]:
        """Return what a sampler node takes of CLoRA. settings: beside the defaults and the prompt of the models."""
        values = {**self.patched, "concepts": concepts, "prompt": self.models.prompt(self.pair, in_braces)}
        clora = self.add("LoRACLR_CLoRASampler", height, {**values, **settings})
        return {"model": clora["MODEL"], "positive": clora["positive"], "negative": clora["negative"]}

    def composed(self, left: int, right: int, masks: Iterable[Output] = (), **settings: Any) -> dict[str, Output]:
        """Add a column with both concepts and one with CLoRA, and return what a sampler node takes of it.

        left, right: widths of the columns. settings: as for `clora`.
        """
        self.column(left)
        concepts = self.concepts(self.pair, masks)
        self.column(right)
        with self.group("Sampler"):
            return self.clora(800, concepts, **settings)

    def posed(self, width: int, pose: Pose, sampled_from: dict[str, Output]) -> dict[str, Output]:
        """Add a column that holds what a sampler node takes to the poses of a picture.

        Nodes whose display names differ between ComfyUI's versions have titles of their own.
        """
        self.column(width)
        with self.group("Poses"):
            picture = self.add("LoadImage", 402, {"image": POSE_PICTURE})["IMAGE"]
            values: dict[str, Any] = {"image": picture, "vae": self.vae, "strength": pose.strength}
            if pose.file.folder == "model_patches":
                patch = self.load("ModelPatchLoader", 150, [pose.file], "name", title="Load Model Patch")["MODEL_PATCH"]
                values |= {"model": sampled_from["model"], "model_patch": patch}
                return sampled_from | {
                    "model": self.add("ZImageFunControlnet", 240, values, "Poses by the patch")["MODEL"]
                }
            loaded = self.load("ControlNetLoader", 141, [pose.file], "control_net_name", title=pose.title)
            control = loaded["CONTROL_NET"]
            if pose.control:
                chosen = {"control_net": control, "type": pose.control}
                control = self.add("SetUnionControlNetType", 100, chosen, "Set Union ControlNet Type")["CONTROL_NET"]
            values |= {name: sampled_from[name] for name in ("positive", "negative")}
            values |= {"control_net": control, "end_percent": pose.end}
            held = self.add("ControlNetApplyAdvanced", 270, values)
            return sampled_from | {name: held[name] for name in ("positive", "negative")}

    def picture(self, width: int, seed: int, sampled_from: dict[str, Output], prefix: str, **settings: Any) -> None:
        """Add a column that samples and saves a picture. settings: as for `sampled`."""
        self.column(width)
        with self.group("Picture"):
            _, image = self.sampled(347, seed, sampled_from, **settings)
            self.save(400, image, prefix)


CHOOSE_LORAS = "Choose your LoRAs. No **trigger**? Write the one each was trained on"
ANOTHER_SEED = "Run: the node shows who is drawn where. One is missing? Try another **seed**"
NAME_IN_BRACES = "In the **prompt**, name each character in braces: type {"
