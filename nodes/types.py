"""Socket types of the pack, one object per type."""

from comfy_api.latest import io

Concepts = io.Custom("LORACLR_CONCEPTS")  # list[loraclr_core.concept.Concept], in the order of the chain
MergeInfo = io.Custom("LORACLR_MERGE_INFO")  # loraclr_core.host.merge.export.MergeInfo

CATEGORY = "LoRACLR"
