"""
Has vLLM's V2 model runner, whose kernels are Triton's, run where there is no GPU: in Triton's interpreter.

Python imports this module at the start of every process that has its folder on `PYTHONPATH`; vLLM's workers are such processes. vLLM
takes Triton on a CPU for usable if it has a backend `cpu`, which no wheel on PyPI has. The interpreter needs none, so an empty one will do.
"""

import os
from types import SimpleNamespace

if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1":
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: `jit` looks at it
    os.environ["TORCHINDUCTOR_TRITON_DISABLE_DEVICE_DETECTION"] = "1"  # to torch's compiler there is no backend

    import triton.backends

    triton.backends.backends.setdefault("cpu", SimpleNamespace(compiler=None, driver=SimpleNamespace(is_active=lambda: True)))
