"""Without a GPU the kernels run in Triton's interpreter, which has to be chosen before triton is first imported."""

import os
import shutil

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
