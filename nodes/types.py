"""Socket types of the pack, one object per type."""

from comfy_api.latest import io

Concepts = io.Custom("LORACLR_CONCEPTS")  # list[loraclr_core.concept.Concept], in the order they were chained
MergeInfo = io.Custom("LORACLR_MERGE_INFO")  # loraclr_core.host.merged_file.MergeInfo

CATEGORY = "LoRACLR"
