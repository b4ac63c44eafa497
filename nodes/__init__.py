"""The nodes: schema and a short `execute` each."""

from .captures import ClearCaptures
from .clora import CLoRAMaps, CLoRASampler
from .load_concept import LoadConceptLoRA
from .merge import LoRACLRMerge
from .save import SaveMergedLoRA
from .train import TrainConceptLoRA

NODES = [LoadConceptLoRA, LoRACLRMerge, SaveMergedLoRA, CLoRASampler, CLoRAMaps, ClearCaptures, TrainConceptLoRA]
