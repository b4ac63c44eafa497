"""One evaluation of the model for all branches, through ComfyUI's own batching.

ComfyUI is asked for one list of conditioning per branch and role, and batches their rows as memory allows. Before the
model, or another pack's wrapper of it, runs, `cond_or_uncond` is set back to the values that other nodes expect there.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from comfy.model_base import BaseModel
from torch import Tensor

from ...sampler.masks import over_channels
from .. import differentiable
from . import tokens
from .attention import Enough, Read, Recorder
from .branches import BranchAdapters
from .calls import Calls, wrappers

# Key of conditioning tags, wrappers and the attachment.
KEY = "loraclr_clora"

Role = Literal["positive", "negative"]

# Patches that see attention rows. Some of them count on one cond and one uncond chunk, as ComfyUI's NAG does, so the
# branches run one after another on a model with any of these.
ROW_PATCHES = {"attn1_patch", "attn2_patch", "attn1_output_patch", "attn2_output_patch"}

# (index of a call, branch)
Wanted = tuple[int, int]


class Call(NamedTuple):
    """One of the lists of conditioning that ComfyUI asks predictions for."""

    # None for a list without tags, or for no list: it runs unchanged, on the model without LoRAs.
    role: Role | None
    # The entries of each branch; without a role, the list alone.
    branches: list[list[dict] | None]


class Evaluation:
    """The model at one noise level, ready to be run on several latents.

    executor: ComfyUI's next CALC_COND_BATCH wrapper. sigma: (batch,).
    """

    def __init__(self, executor: Callable, model: BaseModel, calls: list[Call], sigma: Tensor, options: dict, adapters):
        self.executor = executor
        self.model = model
        self.calls = calls
        self.sigma = sigma
        self.options = options
        self.adapters: BranchAdapters = adapters
        self.surroundings: tuple[Tensor, Tensor] | None = None
        positive = [i for i, call in enumerate(calls) if call.role == "positive"]
        self.main = positive[0] if positive else None  # the call whose attention is read

    def wrappers(self) -> list:
        """Return the functions that other packs have put between this evaluation and the model's layers."""
        return wrappers(self.options.get("model_function_wrapper"), self.options.get("transformer_options", {}))

    def has_row_patches(self) -> bool:
        """Return whether other nodes' patches see attention rows."""
        patches = self.options.get("transformer_options", {}).get("patches", {})
        return any(patches.get(name) for name in ROW_PATCHES)

    def surround(self, latent: Tensor, masks: Tensor) -> None:
        """Show each branch this latent outside its own mask from now on. masks: (batch, branches, h, w), 0…1."""
        self.surroundings = latent, over_channels(masks, latent)

    def predict(
        self,
        z: Tensor,
        recorder: Recorder | None,
        branches: Sequence[int],
        roles: Sequence[Role] = ("positive", "negative"),
    ) -> list[list[Tensor]]:
        """Return, for each call, the denoised predictions of `branches`, each (batch, channels, h, w).

        A call of a role that is not in `roles` has none. A call without a role has exactly one.
        """
        asked = {None: range(1)} | dict.fromkeys(roles, branches)
        requests = [asked.get(call.role, ()) for call in self.calls]
        # Backwards, because ComfyUI takes the lists from the end: the base rows come first, as other nodes expect.
        groups = [
            [(i, branch) for i, wanted in enumerate(requests) if branch in wanted]
            for branch in sorted(set().union(*requests), reverse=True)
        ]
        if not self.has_row_patches():
            groups = [[wanted for group in groups for wanted in group]]
        predictions: dict[Wanted, Tensor] = {}
        for group in groups:
            predictions |= zip(group, self._run(z, group, recorder), strict=True)
        return [[predictions[i, branch] for branch in wanted] for i, wanted in enumerate(requests)]

    def read(self, z: Tensor, recorder: Recorder, branches: list[int]) -> None:
        """Let `recorder` read the attention of these branches' conditional rows, differentiable by `z`."""
        assert self.main is not None
        # ComfyUI's own handling (ControlNets, masks) sees the latent as a constant; only the model sees it as a
        # variable.
        self._run(z.detach(), [(self.main, branch) for branch in branches], recorder, variable=z)

    def _run(
        self, z: Tensor, wanted: list[Wanted], recorder: Recorder | None, variable: Tensor | None = None
    ) -> list[Tensor]:
        """Return a prediction at `z` for each of `wanted`. variable: the latent that the model sees in place of `z`."""
        lists = [self.calls[call].branches[branch] for call, branch in wanted]

        @torch.set_grad_enabled(variable is not None and torch.is_grad_enabled())
        def apply(apply_model: Callable, args: dict) -> Tensor:
            chunks = [wanted[index] for index in args["cond_or_uncond"]]
            return self._apply(
                apply_model, self._prepare(args, chunks, variable), chunks, recorder, variable is not None
            )

        options = {**self.options, "model_function_wrapper": apply}
        transformer_options = dict(options.get("transformer_options", {}))
        if variable is not None:
            options.pop("multigpu_clones", None)  # a gradient's graph stays on one device
            transformer_options.setdefault("optimized_attention_override", differentiable.attention)
        if recorder is not None:
            transformer_options = recorder.options(transformer_options)
        options["transformer_options"] = transformer_options
        with torch.no_grad():
            return self.executor(self.model, lists, z, self.sigma, options)

    def _prepare(self, args: dict, chunks: list[Wanted], variable: Tensor | None) -> dict:
        """Return a batch's arguments in the form that other nodes expect, with the latents that its branches see."""
        args = {**args, "cond_or_uncond": [call for call, _ in chunks]}
        transformer_options = args["c"]["transformer_options"]
        transformer_options["cond_or_uncond"] = args["cond_or_uncond"][:]
        if variable is not None:
            args["input"] = torch.cat([variable] * len(chunks))
            differentiable.make_normal(self.model)
            if args["c"].get("control") is not None:
                differentiable.part_from_skips(transformer_options)
        if self.surroundings is not None:
            seen_by = [None if self.calls[call].role is None else branch for call, branch in chunks]
            args["input"] = _blend(args["input"], seen_by, *self.surroundings)
        return args

    def _apply(
        self, apply_model: Callable, args: dict, chunks: list[Wanted], recorder: Recorder | None, differentiated: bool
    ) -> Tensor:
        """Run the model on a batch, each row with its branch's LoRA, while `recorder` reads the attention."""
        inner = self.options.get("model_function_wrapper")
        transformer_options = args["c"]["transformer_options"]
        per_chunk = args["input"].shape[0] // len(chunks)
        rows = tuple(branch for _, branch in chunks for _ in range(per_chunk))
        reading, calls = None, None
        if recorder is not None:
            reads = self._reads(chunks, per_chunk, transformer_options["uuids"])
            reading = recorder, reads, args["c"]["c_crossattn"].shape[1]
            recorder.begin(*reading[1:], batch=len(rows))
        if others := wrappers(inner, transformer_options):
            calls = Calls(self.model, args, others, rows, self.adapters, reading, differentiated)
            args = calls.watched()
        try:
            with self.adapters.routed(rows):
                if inner is not None:
                    output = inner(apply_model, args)
                else:
                    output = apply_model(args["input"], args["timestep"], **args["c"])
        except Enough:
            output = torch.zeros_like(args["input"])
        if recorder is not None:
            recorder.add(recorder.end())
        if calls is not None:
            calls.finish()
        return output

    def _reads(self, chunks: list[Wanted], per_chunk: int, uuids: list) -> list[Read]:
        reads = []
        for i, ((call, branch), uuid) in enumerate(zip(chunks, uuids, strict=True)):
            if call == self.main:
                entry = next(entry for entry in self.calls[call].branches[branch] or [] if entry["uuid"] == uuid)
                text = entry["model_conds"]["c_crossattn"].cond[0]
                first = 0 if tokens.TEXT_IDS in entry else self._find_first(entry["cross_attn"][0], text)
                reads.append(Read(range(i * per_chunk, (i + 1) * per_chunk), branch, len(text), first))
        return reads

    def _find_first(self, text: Tensor, model_text: Tensor) -> int:
        """Return where the sampler's conditioning begins within the text that the model gets."""
        if len(text) == len(model_text):
            return 0
        first = tokens.first_row(text.to(model_text), model_text)
        if first is None:
            raise ValueError(
                f"The conditioning has {len(text)} text tokens, of which the model ({type(self.model).__name__}) gets"
                f" {len(model_text)}, and nothing shows which are which, so CLoRA cannot find the concepts' words. Use LoRACLR"
                " Merge with this model."
            )
        return first


def _blend(latents: Tensor, branches: list[int | None], around: Tensor, masks: Tensor) -> Tensor:
    """Return the rows of a batch as their branches see them: `around` outside of each branch's mask.

    branches: of each chunk of the batch; None for one that sees the latent as it is.
    """
    rows = list(latents.chunk(len(branches)))
    for i, branch in enumerate(branches):
        if branch is not None:
            inside = masks[branch].to(latents).clone()  # autograd cannot save an inference tensor
            rows[i] = rows[i] * inside + around.to(latents) * (1 - inside)
    return torch.cat(rows)
