"""Face VCD: find faces (``detect``), follow them (``track``), cut them out and put them back (``crop``), in turns
(``plan``)."""

from . import crop, detect, plan, track

__all__ = ["crop", "detect", "plan", "track"]
