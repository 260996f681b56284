"""Face VCD: find faces (:mod:`detect`), follow them (:mod:`track`), cut them out and put them back (:mod:`crop`)."""

from . import crop, detect, track

__all__ = ["crop", "detect", "track"]
