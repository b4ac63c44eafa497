"""The prepared ComfyUI in the foreground, for the browser, until Ctrl-C. Arguments are passed on to it.

python3 tools/host.py tools/serve.py --port 8188
"""

import os
import subprocess
import sys

import demo_assets
import torch
import workflows

BALL = workflows.DEMO.subjects[0]
TRAINING = ", ".join(f"{name} to {value}" for name, value in workflows.DEMO.training.items())
FIRST_STEPS = f"""
The demo draws plain shapes, small enough for a CPU. Two of them in one picture:
  1. Open “Templates” on the left, then “loraclr”, then “{workflows.TWO}”.
  2. Choose {workflows.DEMO.checkpoint} as the checkpoint, and one file in each Load Concept LoRA: the trigger and the
     class word are filled in, and the prompt names what you chose.
  3. Set width and height of Empty Latent Image to {workflows.DEMO.side}, and press Run.
To train one yourself, open “{workflows.TRAIN}”; choose this checkpoint and size, and the folder
{BALL.pictures}. Write “{BALL.trigger}” and “{BALL.class_word}” for trigger and class word, in the prompts too. In Train Concept
LoRA, set {TRAINING}.

The demo's LoRAs, and the trigger each was trained on:
{{loras}}
"""


def tell_first_steps() -> None:
    names = demo_assets.triggers()
    width = max(map(len, names))
    loras = "\n".join(f"  {demo_assets.lora_file(name):{width + 26}} {trigger}" for name, trigger in names.items())
    print(FIRST_STEPS.format(loras=loras), flush=True)


def main() -> None:
    demo_assets.write_assets()
    tell_first_steps()
    device = [] if torch.cuda.is_available() else ["--cpu"]
    try:
        sys.exit(subprocess.call([sys.executable, "main.py", *device, *sys.argv[1:]], cwd=os.environ["COMFYUI_PATH"]))
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
