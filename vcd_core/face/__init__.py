"""Face VCD: find faces (``detect``) or take them (``given``), follow them (``track``), say who is who (``people``) and
whom the artist points at (``pointing``), cut them out and put them back (``crop``), draw some places less than others
(``strength``), in turns (``plan``). Whether they got better says ``judge``, not imported here: it measures with
:mod:`vcd_core.evaluate`, which finds faces."""

from . import crop, detect, given, people, plan, pointing, strength, track

__all__ = ["crop", "detect", "given", "people", "plan", "pointing", "strength", "track"]
