"""The prepared ComfyUI in the foreground, for the browser, until Ctrl-C. Arguments are passed on to it.

python3 tools/host.py tools/serve.py --port 8188
"""

import os
import subprocess
import sys

import torch

device = [] if torch.cuda.is_available() else ["--cpu"]
try:
    sys.exit(subprocess.call([sys.executable, "main.py", *device, *sys.argv[1:]], cwd=os.environ["COMFYUI_PATH"]))
except KeyboardInterrupt:
    sys.exit(0)
