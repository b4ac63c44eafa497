"""The nodes: schema and a short `execute` each."""

from .area import ConceptArea
from .captures import ClearCaptures
from .clora import CLoRAMaps, CLoRASampler
from .load_concept import LoadConceptLoRA
from .merge import LoRACLRMerge
from .save import SaveMergedLoRA
from .scores import PreservationScores
from .train import TrainConceptLoRA

NODES = [
    LoadConceptLoRA,
    ConceptArea,
    LoRACLRMerge,
    SaveMergedLoRA,
    CLoRASampler,
    CLoRAMaps,
    ClearCaptures,
    TrainConceptLoRA,
    PreservationScores,
]
