"""The report's style sheet: a module, not a file beside one, so that it is wherever the package is.

Tones keep a text contrast of 4.5 on the paper, light and dark. They are chosen to stay apart for the
colour-blind too; where they cannot, a marker, a place or a name tells them apart.
"""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1b1f24; --soft: #5b6470; --rule: #dfe3e8; --shade: #f5f7f9;
  --blue: #254cad; --orange: #aa501b; --green: #004822; --magenta: #8a186f; --grey: #6d7177;
  --sky: #1f7ba3; --olive: #524a00;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --ink: #e6e9ed; --soft: #9aa4b0; --rule: #2c323a; --shade: #1c2026;
    --blue: #6191f9; --orange: #ff965a; --green: #98f5d2; --magenta: #b76fa0; --grey: #aeb6c2;
    --sky: #63c9fc; --olive: #e1d579;
  }
}
.tone-reliability, .tone-new, .tone-mlp { --tone: var(--blue); }
.tone-generality, .tone-select { --tone: var(--green); }
.tone-locality, .tone-old, .tone-attention, .tone-covariance { --tone: var(--orange); }
.tone-portability, .tone-exchange, .tone-keys { --tone: var(--magenta); }
.tone-still-old, .tone-evaluate, .tone-other { --tone: var(--grey); }
.tone-apply, .tone-edit { --tone: var(--sky); }
.tone-checkpoint, .tone-draw, .tone-prefixes, .tone-search { --tone: var(--olive); }
.tone-perplexity, .tone-track { --tone: var(--ink); }
.tone-front { --tone: var(--soft); }

* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 3rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
h1 { margin: 0; font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; }
h2 { margin: 3rem 0 1rem; padding-top: .75rem; border-top: 1px solid var(--rule); font-size: 1.25rem; }
p { margin: .5rem 0; max-width: 46rem; }
header .run { margin: .35rem 0 0; color: var(--soft); }
header .stop { margin: 1rem 0 0; font-size: 1.1rem; }
.notes {
  margin: 1rem 0 0; padding: .6rem 1rem .6rem 2rem; border-left: 3px solid var(--orange);
  background: var(--shade);
}
sub { font-size: .7em; line-height: 0; }

.headline {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem;
  margin: 1.75rem 0 .75rem;
}
.headline > div {
  padding: .9rem 1.1rem 1rem; border-top: 3px solid var(--tone); border-radius: 2px;
  background: var(--shade);
}
.headline h3 { margin: 0 0 .4rem; font-size: 1rem; font-weight: 600; }
.headline h3 span { display: block; color: var(--soft); font-weight: 400; font-size: .85rem; }
.headline p { display: flex; justify-content: space-between; align-items: baseline; gap: .5rem; margin: 0; }
.headline p > span { color: var(--soft); font-size: .85rem; }
.headline b { font-weight: 600; white-space: nowrap; }
.headline .exact b { font-size: 1.375rem; line-height: 1.3; letter-spacing: -.02em; }
.headline s { color: var(--soft); font-weight: 400; text-decoration: none; }
.setup { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin: .75rem 0 0; font-size: .9rem; }
.setup div { display: flex; gap: .4rem; }
.setup dt, .protocols dt, footer dt { color: var(--soft); }
dd { margin: 0; }
.protocols {
  display: grid; grid-template-columns: auto 1fr; gap: .1rem .8rem; margin: .75rem 0 0;
  font-size: .85rem;
}

.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1.75rem 2.5rem; align-items: start;
}
.stack { display: grid; gap: 1.75rem; min-width: 0; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { margin-bottom: .5rem; line-height: 1.35; }
figcaption b { display: block; font-weight: 600; }
figcaption span { color: var(--soft); font-size: .85rem; }
.legend {
  display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: 0 0 .5rem; padding: 0; list-style: none;
  font-size: .85rem;
}
.legend i {
  display: inline-block; width: .7rem; height: .7rem; margin-right: .4rem;
  border-radius: 2px; background: var(--tone);
  print-color-adjust: exact; -webkit-print-color-adjust: exact;
}
svg { display: block; width: 100%; max-width: 40rem; height: auto; font-size: 12px; }
svg .tick, svg .axis { fill: var(--soft); font-size: 11.5px; }
svg .axis { font-style: italic; }
svg .name { fill: var(--tone); font-weight: 600; }
svg .grid { stroke: var(--rule); fill: none; }
svg .base { stroke: var(--soft); fill: none; }
svg .target { stroke: var(--soft); stroke-dasharray: 5 4; fill: none; }
svg .line { stroke: var(--tone); stroke-width: 2; stroke-linejoin: round; fill: none; }
svg .line.tone-still-old, svg .line.tone-front { stroke-dasharray: 4 4; }
svg .leader { stroke: var(--rule); fill: none; }
svg .mark { fill: var(--tone); stroke: var(--paper); stroke-width: 1; }
svg .reach { fill: transparent; }
svg .fill { fill: var(--tone); }
svg .segment { stroke: var(--paper); stroke-width: .75; }
svg .inside { fill: var(--paper); font-size: 10.5px; font-weight: 600; pointer-events: none; }

table { width: 100%; border-collapse: collapse; font-size: .875rem; line-height: 1.4; }
th { color: var(--soft); font-weight: 500; text-align: left; vertical-align: bottom; }
th, td { padding: .4rem .7rem .4rem 0; border-bottom: 1px solid var(--rule); }
td { vertical-align: top; unicode-bidi: isolate; }
.cards .prompt { width: 34%; }
td.right { color: var(--blue); font-weight: 600; white-space: nowrap; }
td.stale { color: var(--orange); white-space: nowrap; }
td.stray { color: var(--soft); white-space: nowrap; }
.wide { overflow-x: auto; }
.wide table { width: auto; min-width: 100%; white-space: nowrap; }
.wide th, .wide td { padding: .3rem .45rem; text-align: right; }
.wide thead tr:first-child th { border-bottom: 0; text-align: center; color: var(--ink); }
.wide thead th[rowspan], .wide th[scope=row] {
  position: sticky; left: 0; background: var(--paper); text-align: left; padding-left: 0;
}
.wide .edge { padding-left: .9rem; }

.pairs {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1.25rem 2.5rem; align-items: start; margin: 0; padding: 0; list-style: none;
}
.pairs li {
  position: relative; min-width: 0; padding-left: .9rem; border-left: 3px solid var(--rule);
  font-size: .9rem; break-inside: avoid;
}
.pairs p { margin: 0; }
.pairs .ask { padding-right: 4rem; color: var(--soft); }
.pairs .kind {
  position: absolute; top: 0; right: 0; color: var(--soft); font-size: .8rem; font-style: italic;
}
.pairs dl { display: grid; grid-template-columns: 2.6rem 1fr; gap: .15rem .25rem; margin: .25rem 0 0; }
.pairs dt { color: var(--soft); }
mark {
  padding: 0 .15em; border-radius: 2px; color: var(--tone); font-weight: 600;
  background: color-mix(in srgb, var(--tone) 14%, transparent);
}

footer { margin-top: 3rem; padding-top: .75rem; border-top: 1px solid var(--rule); font-size: .85rem; }
footer dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; }
footer code, pre { font: .8rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
summary { margin-top: 1rem; cursor: pointer; color: var(--soft); }
pre { padding: 1rem; border-radius: 2px; background: var(--shade); white-space: pre-wrap; }

@media (max-width: 44rem) {
  body { padding: 1.25rem 1rem 2rem; }
  h1 { font-size: 1.6rem; }
  svg { font-size: 13px; }
  svg .tick, svg .axis { font-size: 12px; }
  .cards thead { display: none; }
  .cards, .cards tbody, .cards tr, .cards td { display: block; width: auto; }
  .cards tr { padding: .6rem 0; border-bottom: 1px solid var(--rule); }
  .cards .prompt { width: auto; font-weight: 600; }
  .cards td { display: grid; grid-template-columns: 5rem 1fr; padding: .1rem 0; border: 0; }
  .cards td::before { content: attr(data-label); color: var(--soft); font-weight: 400; }
  .cards .prompt { display: block; }
  .cards .prompt::before { content: none; }
  footer dl { grid-template-columns: 1fr; }
  footer dd { margin-bottom: .4rem; }
}
@media print {
  :root { color-scheme: light; }
  html { font-size: 10px; }
  body { max-width: none; padding: 0; }
  .figures, .pairs { grid-template-columns: 1fr 1fr; }
  .wide { overflow: visible; }
  .wide table { font-size: .6rem; }
  h2 { break-after: avoid; }
  tr { break-inside: avoid; }
}
"""
