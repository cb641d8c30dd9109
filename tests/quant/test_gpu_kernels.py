"""The fused kernels of a GPU, run by Triton's interpreter where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no package for this platform")


@pytest.mark.slow
def test_the_kernels_cases() -> None:
    """In a process of its own: the interpreter is chosen when the kernels are first imported."""
    here = Path(__file__).parent
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:nbval", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, str(here / "gpu_cases.py")], capture_output=True, text=True, env=environment, cwd=here.parents[1], check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
