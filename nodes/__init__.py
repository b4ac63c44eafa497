"""The nodes: schema and a short `execute` each."""

from server import PromptServer

from .area import ConceptArea
from .capture_concept import CaptureConcept
from .captures import ClearCaptures
from .clora import CLoRAMaps, CLoRASampler
from .load_concept import LoadConceptLoRA
from .merge import LoRACLRMerge
from .routes import add_routes
from .save import SaveMergedLoRA
from .scores import PreservationScores
from .stack import ConceptsFromStack
from .train import TrainConceptLoRA

NODES = [
    LoadConceptLoRA,
    ConceptArea,
    ConceptsFromStack,
    LoRACLRMerge,
    SaveMergedLoRA,
    CLoRASampler,
    CLoRAMaps,
    ClearCaptures,
    CaptureConcept,
    TrainConceptLoRA,
    PreservationScores,
]

if getattr(PromptServer, "instance", None) is not None:  # outside of a running server there is none
    add_routes(PromptServer.instance)
