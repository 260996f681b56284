"""Video Custom Diffusion (Magic-Me, arXiv 2402.09368) in plain PyTorch.

Nothing here imports ComfyUI: every module can be used from a script or a notebook. The nodes in ``nodes/`` are thin.
"""

__version__ = "0.1.0"
