"""A report of clips and their figures: a page that opens without a network and carries all it shows, and JSON."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any

import torch

from . import charts, summary
from .evaluate import Figure, changes
from .frames import named
from .plots import to_pil

SHOWN_FRAMES = 48  # of a clip in the page, evenly picked
SHOWN_SIDE = 320  # pixels, at most, of what the page shows
WORST = 3  # frames of a figure that are shown
RATE = 12  # frames a second of the clips in the page

_STYLE = """
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.5rem;border-top:1px solid #8884;padding-top:1rem}
table{border-collapse:collapse;margin:.8rem 0}td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #8884}
td.n{text-align:right;font-variant-numeric:tabular-nums}.row{display:flex;flex-wrap:wrap;gap:1rem;align-items:flex-start}
figure{margin:0}figcaption{font-size:.85rem;opacity:.75}img{max-width:100%;border-radius:4px}svg{max-width:100%;height:auto}
.undecided{opacity:.55}"""


@dataclass(frozen=True)
class Report:
    """What a report tells.

    Attributes:
        clips: the frames of each clip, IMAGE [F, H, W, 3], by name.
        figures: what was measured of each.
        notes: sentences below the figures: what is missing, which network compared.
        on_picture: called before each clip and frame that the page shows; may raise to stop.
    """

    clips: Mapping[str, torch.Tensor]
    figures: Mapping[str, Sequence[Figure]]
    notes: Sequence[str] = ()
    on_picture: Callable[[], object] = lambda: None

    def page(self, title: str) -> str:
        """The report as one HTML page without anything from elsewhere."""
        names = list(dict.fromkeys(figure.name for figures in self.figures.values() for figure in figures))
        clips = "".join(self._picture(*_shown(clip, name)) for name, clip in self.clips.items())
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        body = [
            f"<h1>{escape(title)}</h1>",
            f'<div class="row">{clips}</div>',
            self._table(names),
            f"<p>Not computed, in part, or by what:</p><ul>{notes}</ul>" if notes else "",
            *(self._section(name) for name in names),
            "<p>Intervals are of 95 %, over the frames of these clips; frames that follow each other are alike and "
            "count for fewer. They say nothing of other seeds or people.</p>",
        ]
        head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'

    def data(self) -> str:
        """The report's figures as JSON; what is not known is null."""
        clips = {
            name: {
                "frames": len(clip),
                "size": [clip.shape[2], clip.shape[1]],
                "figures": {figure.name: _data_of(figure) for figure in self.figures[name]},
            }
            for name, clip in self.clips.items()
        }
        first = next(iter(self.clips), "")
        over = {
            figure: {name: _interval(change) for name, change in found.items()}
            for figure, found in self._changes.items()
        }
        whole = {"version": 1, "clips": clips, "over": {"clip": first, "changes": over}, "notes": list(self.notes)}
        return json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False) + "\n"

    def _of(self, name: str) -> dict[str, Figure]:
        """A figure of each clip that has it."""
        found = ((clip, [one for one in figures if one.name == name]) for clip, figures in self.figures.items())
        return {clip: ones[0] for clip, ones in found if ones}

    @cached_property
    def _changes(self) -> dict[str, dict[str, summary.Interval]]:
        """How much the other clips changed each figure of the first."""
        return changes(self.figures) if self.figures else {}

    def _table(self, names: list[str]) -> str:
        """All figures of all clips, and what changed from the first."""
        clips = list(self.figures)
        head = "".join(f"<th>{escape(clip)}</th>" for clip in clips)
        head += "".join(f"<th>{escape(clip)} over {escape(clips[0])}</th>" for clip in clips[1:])
        rows = []
        for name in names:
            found, changes = self._of(name), self._changes.get(name, {})
            cells = [_cell(summary.mean(found[clip].known)) if clip in found else "<td></td>" for clip in clips]
            cells += [_cell(changes[clip], True) if clip in changes else "<td></td>" for clip in clips[1:]]
            unit = next(iter(found.values())).unit
            rows.append(f"<tr><td>{escape(name)}</td><td>{escape(unit)}</td>{''.join(cells)}</tr>")
        return f"<table><tr><th>figure</th><th>unit</th>{head}</tr>{''.join(rows)}</table>"

    def _section(self, name: str) -> str:
        """A figure's curves along the clips, its changes, and the frames where it is worst."""
        found, changes = self._of(name), self._changes.get(name, {})
        curves = {clip: list(enumerate(figure.values.tolist())) for clip, figure in found.items()}
        shown = {clip: points for clip, points in curves.items() if len(points) > 1}
        ticks = [tick for tick in charts.nice_ticks(0, max(map(len, curves.values()), default=1)) if tick == int(tick)]
        parts = [charts.lines(shown, across="frame", ticks=ticks)]
        if changes:
            rows = {clip: (change.value, change.low, change.high) for clip, change in changes.items()}
            parts.append(charts.intervals(rows, f"over {next(iter(self.clips))}"))
        stills = []
        for clip, figure in found.items():
            for number in (
                summary.worst_tenth(figure.known, figure.better == "high")[1][:WORST] if figure.better else []
            ):
                if len(figure.values) == len(self.clips[clip]):
                    text = f"{clip}, frame {number}: {figure.values[number]:.3f}"
                    stills.append(self._picture([self.clips[clip][number]], text))
        drifts = [f"{clip}: {summary.drift(figure.known)}" for clip, figure in found.items() if len(figure.known) > 3]
        told = f"<p>Drift from the first frame to the last: {escape('; '.join(drifts))}.</p>" if drifts else ""
        worst = f'<p>Where it is worst:</p><div class="row">{"".join(stills)}</div>' if stills else ""
        return f'<h2>{escape(name)}</h2><div class="row">{"".join(parts)}</div>{told}{worst}'

    def _worst(self, clip: str, figure: Figure) -> list[str]:
        """The clip's frames where a figure is worst, of one that has a value for each frame."""
        frames = self.clips[clip]
        if not figure.better or len(figure.values) != len(frames):
            return []
        _, where = summary.worst_tenth(figure.known, figure.better == "high")
        return [self._picture([frames[i]], f"{clip}, frame {i}: {figure.values[i]:.3f}") for i in where[:WORST]]

    def _picture(self, frames: Sequence[torch.Tensor], text: str) -> str:
        """Frames [H, W, 3] as a WebP inside the page, animated where there are several."""
        self.on_picture()
        pictures = [to_pil(frame) for frame in frames]
        for picture in pictures:
            picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        file = io.BytesIO()
        several = {"save_all": True, "append_images": pictures[1:], "duration": 1000 // RATE, "loop": 0}
        pictures[0].save(file, "WEBP", quality=80, **(several if frames[1:] else {}))
        source = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
        label = escape(text)
        return f'<figure><img src="{source}" alt="{label}"><figcaption>{label}</figcaption></figure>'


def _cell(value: summary.Interval, change: bool = False) -> str:
    kind = "n undecided" if change and not value.decided else "n"
    return f'<td class="{kind}">{escape(str(value))}</td>'


def _data_of(figure: Figure) -> dict[str, Any]:
    worst, where = summary.worst_tenth(figure.known, figure.better == "high")
    return {
        "unit": figure.unit,
        "better": figure.better or None,
        "mean": _interval(summary.mean(figure.known)),
        "drift": _interval(summary.drift(figure.known)),
        "worst_tenth": {"mean": _number(worst), "values": sorted(where)} if figure.better else None,
        "values": [_number(value) for value in figure.values.tolist()],
    }


def _interval(value: summary.Interval) -> dict[str, Any]:
    ends = {"value": _number(value.value), "low": _number(value.low), "high": _number(value.high)}
    return {**ends, "decided": value.decided}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _shown(clip: torch.Tensor, name: str) -> tuple[list[torch.Tensor], str]:
    """The frames of a clip that the page shows, and its name, length and size."""
    count = min(len(clip), SHOWN_FRAMES)
    picked = torch.linspace(0, len(clip) - 1, count).round().long().tolist()
    size = f"{clip.shape[2]}x{clip.shape[1]}"
    shown = "" if count == len(clip) else f", {named(picked)} shown"
    return [clip[i] for i in picked], f"{name}: {len(clip)} frames of {size}{shown}"
