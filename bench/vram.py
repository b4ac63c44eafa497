"""ComfyUI's ways to share a device's memory. Each is settled before the rest of ComfyUI is imported, as its `main.py` does."""

import os
import sys

from comfy.cli_args import args, enables_dynamic_vram

VARIABLE = "LORACLR_BENCH_VRAM"  # in the environment of a process that measures one of them
SMALL = 4 * 2**30  # bytes of the card that “low VRAM” leaves to ComfyUI
# Its command-line arguments. The CPU comes first: the others are compared with it.
WAYS: dict[str, dict[str, bool]] = {
    "cpu": {"cpu": True},
    "dynamic": {},
    "low VRAM": {"disable_dynamic_vram": True, "lowvram": True},
    "offloading": {"novram": True},
}


def settle() -> None:
    """Set ComfyUI's arguments for the way in the environment, or else for the device there is."""
    way = os.environ.get(VARIABLE)
    vars(args).update(WAYS[way] if way else {})
    if way and enables_dynamic_vram():
        import comfy_aimdo.control

        comfy_aimdo.control.init()
    import torch

    if way == "low VRAM":
        args.reserve_vram = max(0, torch.cuda.get_device_properties(0).total_memory - SMALL) / 2**30
    elif not way:
        args.cpu = not torch.cuda.is_available()


def start() -> None:
    """Switch streamed weights on, where the settled way has them."""
    if not os.environ.get(VARIABLE) or not enables_dynamic_vram():
        return
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher
    import comfy_aimdo.control

    devices = [device.index for device in comfy.model_management.get_all_torch_devices()]
    try:
        works = comfy_aimdo.control.init_devices((index, 0) for index in devices)
    except TypeError:  # of earlier versions
        works = comfy_aimdo.control.init_devices(devices)
    if not works:
        sys.exit("bench: ComfyUI's dynamic VRAM does not work here: comfy-aimdo finds no device that it supports")
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
