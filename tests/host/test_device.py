"""Every node and the video models where tensors of the CPU and of a device do not mix: a pretend GPU, in a process of
its own."""

import json
import subprocess
import sys

from dev.host import ROOT


def test_no_node_mixes_tensors_of_the_cpu_and_of_the_device(bench):
    command = [sys.executable, "-m", "dev.walk", "float32", "wan21", "ltx2"]  # of the video models two, for time
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.stdout, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {}
