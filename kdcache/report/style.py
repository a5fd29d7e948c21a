"""The style sheet of a report: light or dark as the reader's system is, from 390 px on."""

from __future__ import annotations

from kdcache.report.pictures import ERROR_COLOURS, WRONG

# Of the hue, the rest is the card's colour; `confusion.TINTS` says from what share on. At 60 % neither colour of text can be read
# in the dark.
TINTS_PERCENT = (7, 13, 20, 28, 36, 44, 100)

CSS = (
    """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #ffffff; --text: #1c1c1a; --soft: #62625c;
  --line: #deded8; --student: #1f6fd0; --baseline: #b85500; --teacher: #6f6f68;
  --wait: #b3261e; --step: #2f8f6b; --validation: #8b8b84; }
@media (prefers-color-scheme: dark) {
  :root { --page: #161617; --card: #1f1f21; --text: #ececea; --soft: #a5a5a0;
    --line: #3a3a3d; --student: #6ab0ff; --baseline: #f59a3d; --teacher: #b4b4ae;
    --wait: #ff8a80; --step: #5cc79d; --validation: #8b8b84; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 10px; }
h3 { font-size: 1rem; margin: 22px 0 8px; }
p { margin: 8px 0 0; }
small, .soft { color: var(--soft); font-size: .87rem; font-weight: 400; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px;
  margin-top: 16px; }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin-top: 16px; }
.tile { background: var(--card); border: 1px solid var(--line); border-top: 4px solid var(--line);
  border-radius: 10px; padding: 10px 14px; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.25; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.tile.teacher { border-top-color: var(--teacher); }
.tile.baseline { border-top-color: var(--baseline); }
.tile.student { border-top-color: var(--student); }

.key { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 8px; padding: 0; list-style: none;
  font-size: .87rem; }
.key i { display: inline-block; width: 22px; border-top: 3px solid; margin-right: 6px;
  vertical-align: middle; }
.key .student { color: var(--student); }
.key .baseline { color: var(--baseline); }
.key .teacher { color: var(--teacher); border-top-style: dashed; }

.chart { margin: 0; }
.chart figcaption { font-weight: 600; margin-bottom: 8px; }
.plot { position: relative; margin: 0 12px 26px 48px; }
.plot svg { display: block; width: 100%; height: 100%; overflow: visible; }
.plot path { fill: none; vector-effect: non-scaling-stroke; }
.plot .student { stroke: var(--student); }
.plot .baseline { stroke: var(--baseline); }
.plot .teacher { stroke: var(--teacher); stroke-dasharray: 6 5; }
.grid { stroke: var(--line); stroke-width: 1px; }
.line { stroke-width: 2px; stroke-linejoin: round; }
.dot { stroke-width: 6px; stroke-linecap: round; }
.dot.best { stroke-width: 12px; }
.plot span { position: absolute; font-size: 12px; color: var(--soft); line-height: 1; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.ylabels span { right: calc(100% + 8px); transform: translateY(-50%); }
.xlabels span { top: calc(100% + 9px); transform: translateX(-50%); }
.multiples { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px 20px;
  margin-top: 34px; }
.multiples small { display: block; }

table { border-collapse: collapse; width: 100%; font-size: .92rem; table-layout: fixed; }
th, td { text-align: right; padding: 5px 8px; border-bottom: 1px solid var(--line); font-weight: 400;
  font-variant-numeric: tabular-nums; }
th:first-child { text-align: left; overflow-wrap: anywhere; width: 28%; }
thead th, tfoot th, tfoot td { font-weight: 600; }
tfoot th, tfoot td { border-bottom: 0; }
.bar { display: block; height: 4px; margin-top: 3px; border-radius: 2px; background: var(--line);
  overflow: hidden; }
.bar i { display: block; height: 100%; }
.bar .student { background: var(--student); }
.bar .baseline { background: var(--baseline); }
.bar .teacher { background: var(--teacher); }
.scroll { max-height: 75vh; overflow: auto; }
.scroll thead th, .scroll tfoot th, .scroll tfoot td { position: sticky; background: var(--card); }
.scroll thead th { top: 0; }
.scroll tfoot th, .scroll tfoot td { bottom: 0; }
.facts th, .facts td { text-align: left; vertical-align: top; overflow-wrap: anywhere; }
.facts th { color: var(--soft); }
.grid th, .grid td { vertical-align: top; overflow-wrap: anywhere; }
.grid td:first-child { text-align: left; }
.grid bdi { display: inline-block; max-width: 100%; }
.grid.pairs th:first-child { width: 40%; }
.grid.pairs td:not(:first-child), .grid.times td { white-space: nowrap; }
.grid.made th, .grid.made td { text-align: left; }

.matrix { margin: 8px 0; }
.matrix th { padding: 2px 4px; font-size: 12px; text-align: left; border: 0; overflow: hidden; }
.matrix th:first-child { width: 16%; }
.matrix tbody th > span { display: block; max-height: 2.9em; line-height: 1.45; overflow: hidden; }
.matrix thead th:not(:first-child) { vertical-align: bottom; padding: 4px 0; }
.matrix thead th:not(:first-child) > span { display: block; margin: 0 auto; writing-mode: vertical-rl;
  transform: rotate(180deg); max-height: 120px; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
.matrix thead .swatch { margin: 0 0 6px; }
.matrix td { padding: 0; height: 26px; text-align: center; vertical-align: middle; font-size: 12px;
  border: 1px solid var(--card); background: color-mix(in srgb, var(--hue) var(--mix), var(--card)); --mix: 0%; }
.matrix .right { --hue: var(--student); }
.matrix .wrong { --hue: var(--baseline); }
"""
    + "".join(
        f".matrix .tint{n} {{ --mix: {percent}%; }}\n" for n, percent in enumerate(TINTS_PERCENT, 1)
    )
    + """
.matrix .tint7 { color: var(--card); }

.budget { display: grid; grid-template-columns: 70px 1fr; gap: 8px; align-items: center; margin: 6px 0; font-size: .87rem; }
.parts { display: flex; height: 18px; background: var(--line); border-radius: 3px; overflow: hidden; }
.key.blocks i { width: 12px; height: 12px; border: 0; border-radius: 2px; }
.parts .wait, .blocks .wait { background: var(--wait); }
.parts .step, .blocks .step { background: var(--step); }
.parts .validation, .blocks .validation { background: var(--validation); }
.grid.times { margin-top: 10px; }
summary { cursor: pointer; font-weight: 600; padding: 6px 0; }

.swatch { display: inline-block; width: 14px; height: 14px; border: 1px solid var(--soft);
  border-radius: 3px; vertical-align: -2px; margin-right: 6px; }
.void { background: repeating-linear-gradient(135deg, #b0b0b0 0 3px, #787878 3px 6px); }
"""
    + f".err {{ background: rgb{ERROR_COLOURS[WRONG]}; }}"
    + """
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 8px 0 0; padding: 0; list-style: none;
  font-size: .87rem; }
.legend li { overflow-wrap: anywhere; }
.panel { margin: 18px 0 0; }
.panel h4 { font-size: .95rem; font-weight: 600; margin: 0 0 6px; overflow-wrap: anywhere; }
.pictures { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: 10px; }
.pictures figure { margin: 0; }
.pictures img { display: block; width: 100%; border: 1px solid var(--line); border-radius: 4px; }
.pictures img.coarse { image-rendering: pixelated; }
.pictures figcaption { font-size: .82rem; color: var(--soft); margin-top: 2px; }

@media (max-width: 700px) {
  .pictures { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .pictures figure:first-child:nth-last-child(odd) { grid-column: 1 / -1; }
  section { padding: 14px 12px; }
  th, td { padding: 5px 3px; font-size: .8rem; }
  thead th { font-size: .74rem; }
  .facts th:first-child { width: 46%; }
  .matrix th, .matrix td { font-size: 10px; }
  .matrix th:first-child { width: 25%; padding-left: 0; }
  .matrix .swatch, .grid .swatch { width: 10px; height: 10px; margin-right: 3px; vertical-align: 0; }
  .matrix.many td { font-size: 0; height: 14px; }
  .ious .swatch { width: 10px; height: 10px; margin-right: 4px; vertical-align: 0; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tile b { font-size: 1.25rem; }
}
"""
)
