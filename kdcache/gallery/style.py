"""What a gallery's style sheet adds to that of a report."""

from __future__ import annotations

from kdcache.report.pictures import heat_colours

_STOPS = ", ".join("#" + colour.tobytes().hex() for colour in heat_colours()[::7])

CSS = (
    """
:root { --warn: #fbe3df; --warned: #a32014; }
@media (prefers-color-scheme: dark) { :root { --warn: #4a211d; --warned: #ff9d92; } }
main { max-width: 1400px; }
[hidden] { display: none !important; }
.warn { background: var(--warn); }
p.warn { padding: 8px 12px; border-left: 4px solid var(--warned); border-radius: 4px; overflow-wrap: anywhere; }
.called { display: grid; grid-template-columns: minmax(180px, 300px) minmax(0, 1fr); gap: 20px; margin-top: 14px; }
.called figure { margin: 0; }
.confusion { display: block; width: 100%; image-rendering: pixelated; border: 1px solid var(--line); }
figcaption { font-size: .82rem; color: var(--soft); margin-top: 4px; }
.classes th:first-child, .classes th:last-child { width: 29%; }
.classes th:last-child, .classes td:last-child { text-align: left; overflow-wrap: anywhere; }
.classes .warn td:last-child { color: var(--warned); font-weight: 600; }

form { display: flex; flex-wrap: wrap; gap: 10px 24px; align-items: center; margin: 12px 0; font-size: .92rem; }
form label { display: flex; gap: 8px; align-items: center; max-width: 100%; }
select, input { font: inherit; min-width: 0; max-width: 260px; }
.heat { display: inline-block; width: 72px; height: 12px; border: 1px solid var(--soft); vertical-align: -1px; margin: 0 6px;
"""
    f"  background: linear-gradient(90deg, {_STOPS}); }}"
    """
.cards { display: grid; gap: 12px; margin-top: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 120px + 265px * var(--views)), 1fr)); }
article { border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; min-width: 0; }
article h3 { font-size: .95rem; font-weight: 600; margin: 0 0 6px; overflow-wrap: anywhere; }
.views { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr)); gap: 12px 16px; }
.pics { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 4px 6px; margin-bottom: 4px; }
.pics figure { margin: 0; grid-column: span 3; }
.pics figure:nth-child(n+5) { grid-column: span 2; }
.pics figcaption { font-size: .75rem; margin: 0; }
.pics img { display: block; width: 100%; aspect-ratio: var(--shape); image-rendering: pixelated; }
.photo { aspect-ratio: var(--shape); background: var(--photo) 0 0 / 100% 100%; }
.photo img { opacity: .6; image-rendering: auto; }
@media (max-width: 700px) {
  .called { grid-template-columns: minmax(0, 1fr); }
  .called figure { max-width: 300px; }
  .classes thead th { font-size: .68rem; padding: 5px 2px; }
  .classes .swatch { width: 10px; height: 10px; margin-right: 3px; vertical-align: 0; }
}
"""
)
