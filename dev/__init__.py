"""What ``run.py`` runs: setting up a real ComfyUI, driving it, and making test models.  Not part of what is
published."""
