"""The style of the page of probes: for light and dark screens, wide and narrow ones, and paper."""

STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1b1f24;--muted:#57606a;--grid:#e1e4e8;--panel:#f5f6f8;
--c0:#0a62c9;--c1:#b85500;--c2:#0b7a4b;--c3:#b02a86;--c4:#6a4fc8;--c5:#0b7786;--c6:#c0362c;--c7:#776600}
@media screen and (prefers-color-scheme:dark){:root{--page:#14171b;--ink:#e6e9ed;--muted:#a0a9b4;--grid:#2d333b;
--panel:#1c2127;--c0:#6cb0ff;--c1:#ffab5c;--c2:#58d39b;--c3:#f08ad0;--c4:#b6a4ff;--c5:#5ccfe0;--c6:#ff8a80;--c7:#d8c650}}
@media print{:root{color-scheme:light}section{break-before:page}section:first-of-type{break-before:auto}
figure,.row{break-inside:avoid}details::details-content{content-visibility:visible;block-size:auto}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.2rem 1rem 4rem;max-width:64rem;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.2;margin:.2rem 0 .6rem}
h2{font-size:1.25rem;margin:2.2rem 0 .6rem;padding-top:.6rem;border-top:2px solid var(--grid)}
h3{font-size:1rem;margin:1.6rem 0 .4rem}
p{margin:.5rem 0}.how,.notes{color:var(--muted);font-size:.9rem}
.verdicts{list-style:none;margin:.6rem 0;padding:.7rem 1rem;background:var(--panel);border-radius:.5rem}
.verdicts li+li{margin-top:.6rem}.verdicts b{display:block}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr));gap:1.2rem 1.6rem}
.small{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,18rem),1fr));gap:1.2rem 1.6rem}
figure{margin:.8rem 0;min-width:0}figcaption{font-weight:600;font-size:.95rem;margin-bottom:.5rem}
.plot{padding:0 .8rem 0 2.8rem}.layers .plot{padding-bottom:2.8rem;padding-top:.4rem}
.layers .plot.labelled{padding-right:7.2rem}.weights .plot{padding-left:1.8rem}
svg{overflow:visible}.picture{display:block;width:100%}
.map svg:not(.key){display:block;width:100%;max-width:26rem;background:var(--panel);border-radius:.5rem}
.map .mark{transform:scale(.75);fill-opacity:.75}
.key{width:28px;height:16px;flex:none;margin-right:.4rem}
.legend{list-style:none;margin:.4rem 0;padding:0;display:flex;flex-wrap:wrap;gap:.15rem 1.1rem;font-size:.85rem}
.legend li{display:flex;align-items:center;min-width:0}
text{font-size:13px;fill:var(--ink)}.tick{fill:var(--muted)}text.name{fill:var(--c,var(--muted))}
.grid{stroke:var(--grid)}.solid,.dotted,.dashed,.dashdot,.fine,.sparse{stroke:var(--c);stroke-width:1.8}
.dotted{stroke-dasharray:1.5 4;stroke-linecap:round}.dashed{stroke-dasharray:7 4}.dashdot{stroke-dasharray:8 3 2 3}
.sparse{stroke-dasharray:2 7}.fine{stroke-width:1}
.mark{stroke:var(--c);stroke-width:1.6;fill:var(--c)}.hollow{fill:var(--page)}.line{fill:none;stroke-width:2}
.bar{stroke:var(--c);stroke-width:1.5;fill:none}.band{fill:var(--c);opacity:.12}.fill{fill:var(--c)}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}.c5{--c:var(--c5)}
.c6{--c:var(--c6)}.c7{--c:var(--c7)}.neutral{--c:var(--muted)}
.weights text{paint-order:stroke;stroke:var(--page);stroke-width:4px}
.row{display:grid;grid-template-columns:minmax(0,16rem) minmax(0,1fr);gap:0 1rem;align-items:center;
padding-right:1rem;font-size:.85rem}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.25rem .8rem .25rem 0;border-bottom:1px solid var(--grid);overflow-wrap:normal;
white-space:nowrap}
.number{text-align:right}details{margin:.8rem 0}summary{cursor:pointer}
details ul{font-size:.85rem;padding-left:1.2rem}
@media (max-width:40rem){.layers .plot.labelled{padding-right:.8rem}text.name{display:none}
.row{grid-template-columns:minmax(0,1fr);padding:.2rem .6rem}.axis span{display:none}}
"""
