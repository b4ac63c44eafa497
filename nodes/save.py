"""Save Merged LoRA: a merge as a file that any ComfyUI loads."""

import logging
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..loraclr_core.host.errors import plain_errors
from ..loraclr_core.host.lora import file
from ..loraclr_core.host.merge import export
from .types import CATEGORY, MergeInfo

log = logging.getLogger("loraclr")

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class SaveMergedLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRACLR_SaveMergedLoRA",
            display_name="Save Merged LoRA",
            category=CATEGORY,
            description="Saves a merged LoRA as a safetensors file. Load it with the stock Load LoRA at strength 1 to"
            " get the merged model again.",
            search_aliases=["save lora", "export lora", "loraclr"],
            is_output_node=True,
            inputs=[
                io.LoraModel.Input("lora", tooltip="The merged LoRA to save."),
                io.String.Input(
                    "filename",
                    default="loraclr/merged",
                    dynamic_prompts=False,
                    tooltip="Name of the file within the folder. May contain subfolders; .safetensors is added.",
                ),
                io.Combo.Input(
                    "folder",
                    options=["loras", "output"],
                    default="loras",
                    tooltip="Where to save the file. loras: where Load LoRA finds it. output: next to your pictures.",
                ),
                io.Combo.Input(
                    "if_exists",
                    options=["number", "overwrite", "fail"],
                    default="number",
                    tooltip="What to do if the file exists. number: save as name_2, name_3 and so on. overwrite:"
                    " replace it. fail: stop with an error.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="float32",
                    advanced=True,
                    tooltip="Number format of the saved weights. float32 reloads to exactly the same model. float16"
                    " and bfloat16 halve the file; the report shows what is lost.",
                ),
                io.Int.Input(
                    "max_rank",
                    default=0,
                    min=0,
                    max=8192,
                    advanced=True,
                    tooltip="Largest rank to save. 0 keeps the exact rank, the sum of the concepts' ranks. Lower"
                    " ranks make the file smaller and the merge less exact; the report shows by how much.",
                ),
                MergeInfo.Input(
                    "merge_info",
                    optional=True,
                    tooltip="Connect merge_info of LoRACLR Merge to write concepts, triggers and settings into the"
                    " file.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="lora_name", tooltip="Name of the saved file within its folder."),
                io.String.Output(
                    display_name="report", tooltip="Where the file was saved, its size, and what was lost."
                ),
            ],
        )

    @classmethod
    @plain_errors()
    def execute(
        cls,
        lora: dict[str, torch.Tensor],
        filename: str,
        folder: str,
        if_exists: str,
        precision: str,
        max_rank: int,
        merge_info: export.MergeInfo | None = None,
    ) -> io.NodeOutput:
        root = Path(
            folder_paths.get_folder_paths("loras")[0] if folder == "loras" else folder_paths.get_output_directory()
        )
        path = file.path_within(root, filename)
        prepared = export.prepare(lora, PRECISIONS[precision], max_rank)
        metadata = {} if merge_info is None else export.metadata(prepared.tensors, merge_info, path.stem)
        path = export.save(path, prepared.tensors, metadata, if_exists)
        report = export.describe(path, prepared)
        log.info(report)
        return io.NodeOutput(path.relative_to(root).as_posix(), report, ui={"text": (report,)})
