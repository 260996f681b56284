"""Lets PyPI's torchvision (built for CUDA) be imported beside a torch built for the CPU.

Its compiled extension cannot load there, and then two operator schemas are missing that torchvision looks up by name
while it is imported.  ``dev.host`` installs this file into the development host's environment, where it declares them
just before torchvision is first imported.  What torchvision writes in Python works; what needs the extension still
raises.
"""

import importlib.abc
import sys
from typing import Any


class _DeclareSchemas(importlib.abc.MetaPathFinder):
    library: Any = None

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            _DeclareSchemas.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, _DeclareSchemas())
