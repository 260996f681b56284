"""Studies on many machines: what varies over a graph (``study``), who does what next (``schedule``), ComfyUI on each
(``worker``), and the run that holds them together (``run``)."""
