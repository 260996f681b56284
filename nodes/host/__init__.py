"""The one door to ComfyUI: whatever imports it stands here, a file for each part of it that is opened."""
