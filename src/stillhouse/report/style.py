"""The page's style sheet: system fonts, light and dark, narrow and wide, paper."""

CSS = """
:root{color-scheme:light dark;--bg:#fdfdfc;--raised:#f5f6f6;--ink:#1b1f23;--soft:#586069;--line:#e2e5e8;
  --blue:#0072b2;--orange:#d55e00;--orange-ink:#a84a00;--grey:#6b737c;--heat:0 114 178;--warm:213 94 0;
  --mono:ui-monospace,"SF Mono","Cascadia Code","Roboto Mono",Menlo,Consolas,"Liberation Mono",monospace;
  --sans:-apple-system,BlinkMacSystemFont,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",Arial,
  sans-serif}
@media(prefers-color-scheme:dark){
  :root{--bg:#121517;--raised:#1a1e21;--ink:#e9ebed;--soft:#a3abb3;--line:#2c3238;--blue:#58aee6;
    --orange:#f28b3f;--orange-ink:#f6a261;--grey:#98a1aa;--heat:72 158 220;--warm:242 139 63}
}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth;scroll-padding-top:1.5rem}
@media(prefers-reduced-motion:reduce){
  html{scroll-behavior:auto}
}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.6 var(--sans)}
main,footer{max-width:1144px;margin:0 auto;padding:0 32px}
a{color:inherit;text-decoration-color:var(--grey);text-underline-offset:.2em}
a:hover{text-decoration-color:currentColor}
:focus-visible{outline:2px solid var(--blue);outline-offset:3px;border-radius:3px}
.skip{position:absolute;left:-999px}
.skip:focus{left:12px;top:12px;background:var(--bg);padding:4px 10px;z-index:1}
h1,h2,h3,h4,p,dl,dd,ul,figure{margin:0;padding:0}
code{font:.88em/1.5 var(--mono);overflow-wrap:anywhere}
small{font-size:.8125rem;color:var(--soft)}
.unknown{color:var(--soft);font-style:italic;font-weight:400}
.verdict{padding:56px 0 40px;display:grid;grid-template-columns:1fr auto;gap:0 32px}
.brand,.run{font-size:.875rem;color:var(--soft)}
.brand b{color:var(--ink);letter-spacing:.01em}
.run{display:flex;flex-wrap:wrap;gap:4px 20px;justify-content:flex-end;font-variant-numeric:tabular-nums}
.verdict h1,.basis,.tiles{grid-column:1/-1}
h1{font-size:clamp(2rem,1.2rem + 3.4vw,3.5rem);line-height:1.12;letter-spacing:-.025em;font-weight:600;
  margin:64px 0 20px;max-width:19em;text-wrap:balance}
.figure{white-space:nowrap;font-variant-numeric:tabular-nums}
.kept{color:var(--blue)}
.basis{color:var(--soft);max-width:60em;text-wrap:pretty}
.tiles{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:28px 32px;margin-top:56px}
.tiles div{border-top:1px solid var(--line);padding-top:12px}
.tiles dt{font-size:.8125rem;color:var(--soft);display:flex;align-items:center;gap:6px;min-height:20px}
.tiles dd{font-size:1.5rem;line-height:1.3;letter-spacing:-.015em;font-variant-numeric:tabular-nums}
.tiles dd.note{font-size:.8125rem;line-height:1.4;letter-spacing:0;color:var(--soft);margin-top:2px}
.tiles .key{width:14px;height:14px}
nav{display:flex;flex-wrap:wrap;gap:4px 24px;font-size:.875rem;padding:14px 0;
  border-top:1px solid var(--line)}
nav a{text-decoration:none;color:var(--soft);padding:4px 0}
nav a:hover{color:var(--ink)}
section{border-top:1px solid var(--line);padding:56px 0 64px;display:grid;
  grid-template-columns:212px minmax(0,1fr);gap:20px 56px}
section>header{align-self:start}
.body>:first-child{margin-top:0}
h2{font-size:1.25rem;line-height:1.3;letter-spacing:-.012em;font-weight:600;text-wrap:balance}
h3{font-size:.9375rem;font-weight:600;margin:36px 0 10px}
.lead{font-size:.875rem;line-height:1.55;color:var(--soft);margin-top:10px}
.said{margin-top:20px;max-width:44em}
.method,figcaption{font-size:.8125rem;line-height:1.55;color:var(--soft)}
.method{margin-top:14px;max-width:54em}
figcaption{margin-top:12px;max-width:54em}
.rows{font:.8125rem var(--mono);white-space:nowrap}
.absent{border:1px dashed var(--grey);border-radius:8px;padding:20px 24px;color:var(--soft)}
.absent b{color:var(--ink)}
.legend{display:flex;flex-wrap:wrap;gap:4px 20px;font-size:.8125rem;color:var(--soft);margin:14px 0 10px}
.item{display:inline-flex;align-items:center;gap:6px}
.stroke{width:20px;height:0;border-top:2.5px solid var(--blue)}
.stroke.held{border-color:var(--orange)}
.stroke.rate{border-top:1.5px dashed var(--grey)}
.chart{display:block;width:100%;height:auto;overflow:visible}
.chart.narrow{display:none}
.chart text{font:13px var(--sans);fill:var(--ink);font-variant-numeric:tabular-nums}
.chart .axis{fill:var(--soft);font-size:12px}
.chart .label{font-weight:600;paint-order:stroke;stroke:var(--bg);stroke-width:4px}
.grid{stroke:var(--line)}
.tick{stroke:var(--grey)}
.split{stroke:var(--grey);stroke-dasharray:2 4}
.level{stroke:var(--blue);stroke-dasharray:6 5;opacity:.55}
.rise{stroke:var(--orange);stroke-dasharray:1 5;stroke-width:2;stroke-linecap:round}
.whisker{stroke-width:2}
.whisker.teacher{stroke:var(--blue)}
.whisker.student,.whisker.before{stroke:var(--orange)}
.whisker.baseline{stroke:var(--grey)}
.mark{stroke:var(--bg);stroke-width:1.5}
.mark.teacher{fill:var(--blue)}
.mark.student{fill:var(--orange)}
.mark.before{fill:var(--bg);stroke:var(--orange);stroke-width:2.2}
.mark.baseline{fill:var(--grey)}
.key{flex:none;vertical-align:-3px;margin-right:4px}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.line.train{stroke:var(--blue);stroke-width:1.5}
.line.held{stroke:var(--orange)}
.line.rate{stroke:var(--grey);stroke-width:1.5;stroke-dasharray:5 4}
.dot.held{fill:var(--orange);stroke:var(--bg)}
.ring{fill:none;stroke:var(--ink);stroke-width:1.5}
.scroll{overflow-x:auto;scrollbar-width:thin}
table{border-collapse:collapse;width:100%;font-size:.875rem;line-height:1.4;
  font-variant-numeric:tabular-nums}
caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
th,td{padding:9px 12px;text-align:left;vertical-align:middle;border-bottom:1px solid var(--line);
  font-weight:400}
th:first-child{padding-left:0}
td:last-child,th:last-child{padding-right:0}
thead th{font-size:.8125rem;color:var(--soft);vertical-align:bottom;white-space:nowrap;padding-top:0}
.n{text-align:right;white-space:nowrap}
.words{color:var(--soft);white-space:normal}
.heat td small,.heat td b{display:block;font-weight:400}
.heat td small{font-size:.75rem;line-height:1.3;color:inherit;opacity:.85}
.heat th[scope=row]{font-weight:600}
.heat tbody td,.heat tbody th{padding-top:7px;padding-bottom:7px;border-bottom:2px solid var(--bg)}
.heat thead th{border-bottom:0}
.heat tbody td:nth-last-child(-n+2){color:var(--soft)}
.heat .share b{font-weight:600;display:inline}
.heat .share small{display:block}
.glyph{font-style:normal;display:inline-block;width:1.3em;text-align:center}
.low .glyph,.glyph.low{color:var(--orange-ink)}
.most .glyph,.full .glyph,.glyph.most,.glyph.full{color:var(--blue)}
.share.low{background:rgb(var(--warm)/.16)}
.share.most{background:rgb(var(--warm)/.06)}
HEAT
.bar{width:38%;min-width:90px}
.bar span{display:block;height:12px;border-radius:2px;background:var(--blue);min-width:1px}
.stages .bar{width:24%}
.stages .bar span{background:var(--grey)}
.funnel thead th{border-bottom:0}
.funnel td:last-child{color:var(--soft);text-align:left;white-space:nowrap}
.funnel th[scope=row],.stages th[scope=row]{font-weight:600;white-space:nowrap}
details>summary{cursor:pointer;list-style:none}
summary::-webkit-details-marker{display:none}
.numbers{margin-top:16px;font-size:.875rem}
.numbers+.numbers{margin-top:8px}
.numbers>summary{color:var(--soft);font-size:.8125rem}
.numbers>summary::before{content:"+";display:inline-block;width:1.2em;font-family:var(--mono)}
.numbers[open]>summary::before{content:"\\2212"}
.numbers[open]>summary{margin-bottom:12px}
.numbers>summary:hover{color:var(--ink)}
.recipe{margin-top:28px}
.recipe>summary{font-size:.9375rem;color:var(--ink)}
.reason{border-bottom:1px solid var(--line)}
.reason>summary,p.reason{display:grid;grid-template-columns:4.5em 1fr auto 1.2em;gap:12px;padding:9px 0;
  font-size:.875rem;align-items:baseline}
.reason>summary::after{content:"+";font-family:var(--mono);color:var(--soft);text-align:right}
.reason[open]>summary::after{content:"\\2212"}
.reason b{font-weight:600}
.count{text-align:right;font-variant-numeric:tabular-nums}
.of{color:var(--soft);font-size:.8125rem}
.reasons>.rows{display:inline-block;margin-top:14px}
.example{display:grid;grid-template-columns:1fr 1fr;gap:16px;padding:4px 0 16px}
.reason>.method{margin:0 0 16px}
h4{font-size:.8125rem;font-weight:600;color:var(--soft);margin:0 0 6px;display:flex;
  justify-content:space-between;gap:12px}
h4 span{font-weight:400}
.text{font:.8125rem/1.6 var(--mono);white-space:pre-wrap;overflow-wrap:anywhere;overflow:hidden;
  background:var(--raised);border-radius:6px;padding:12px 14px;max-width:100%;tab-size:4;
  unicode-bidi:plaintext}
.rest{color:var(--soft);font-family:var(--sans);font-style:italic}
.odd{font:600 .6875rem/1 var(--mono);border:1px solid var(--orange-ink);color:var(--orange-ink);
  border-radius:3px;padding:1px 4px;margin:0 2px;white-space:nowrap;unicode-bidi:isolate;direction:ltr}
del,ins{text-decoration-thickness:2px;text-underline-offset:.22em;border-radius:2px;padding:1px 0;
  -webkit-box-decoration-break:clone;box-decoration-break:clone}
del{background:rgb(var(--heat)/.14);text-decoration:underline dashed var(--blue) 1.5px}
ins{background:rgb(var(--warm)/.16);text-decoration:underline solid var(--orange) 2px}
.pair{border-bottom:1px solid var(--line)}
.pair>summary{display:grid;grid-template-columns:6.2em 6.5em minmax(0,1fr) auto 1em;gap:12px;
  padding:11px 0;font-size:.875rem;align-items:baseline}
.pair>summary::after{content:"+";font-family:var(--mono);color:var(--soft);text-align:right}
.pair[open]>summary::after{content:"\\2212"}
.pair>summary:hover,.reason>summary:hover{background:var(--raised)}
.verdict-mark i{font-style:normal;display:inline-block;width:1.2em}
.verdict-mark.worse{color:var(--orange-ink);font-weight:600}
.verdict-mark.better{color:var(--blue);font-weight:600}
.verdict-mark.same,.verdict-mark.unscored{color:var(--soft)}
.family{font-weight:600;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.opening{color:var(--soft);overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.scores{font-variant-numeric:tabular-nums;white-space:nowrap}
.pair[open]{padding-bottom:20px}
.asked{display:grid;grid-template-columns:3fr 2fr;gap:16px;margin:6px 0 16px}
.two{display:grid;grid-template-columns:1fr 1fr;gap:16px}
.asked>*,.two>*,.example>*{min-width:0}
.answer.teacher .text{box-shadow:inset 3px 0 var(--blue)}
.answer.student .text{box-shadow:inset 3px 0 var(--orange)}
.answer .method{margin-top:6px}
.pair>.method{margin-top:10px}
.pairs>div{display:grid;grid-template-columns:11em minmax(0,1fr);gap:16px;padding:8px 0;
  border-bottom:1px solid var(--line);font-size:.875rem}
.pairs dt{color:var(--soft)}
.pairs dd{overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.unanchored{color:var(--orange-ink);font-weight:600}
.limits{list-style:none;max-width:46em}
.limits li{padding:11px 0 11px 26px;border-bottom:1px solid var(--line);position:relative;
  overflow-wrap:anywhere}
.limits li:first-child{padding-top:0}
.limits li::before{content:"\\2013";position:absolute;left:0;color:var(--grey)}
footer{border-top:1px solid var(--line);font-size:.8125rem;color:var(--soft);padding-top:20px;
  padding-bottom:56px}
@media(max-width:1000px){
  section{grid-template-columns:minmax(0,1fr);gap:24px}
  .lead{max-width:46em}
}
@media(max-width:640px){
  main,footer{padding:0 16px}
  .verdict{padding:24px 0 28px;grid-template-columns:1fr}
  .run{justify-content:flex-start;margin-top:6px}
  h1{margin:40px 0 14px}
  .tiles{grid-template-columns:repeat(2,minmax(0,1fr));margin-top:36px;gap:20px}
  section{padding:40px 0 44px}
  .chart.wide{display:none}
  .chart.narrow{display:block}
  .two,.asked,.example{grid-template-columns:minmax(0,1fr)}
  .pair>summary{grid-template-columns:5.6em minmax(0,1fr) auto 1em;gap:2px 10px}
  .pair .opening{grid-row:2;grid-column:1/4}
  .pairs>div{grid-template-columns:1fr;gap:0}
  .reason>summary,p.reason{grid-template-columns:3.4em 1fr auto 1em}
  .funnel td:last-child,.funnel th:last-child{display:none}
  .bar{min-width:70px;width:30%}
  .stages .bar,.stages th:nth-child(2){display:none}
  .heat th[scope=row],.heat th:first-child{position:sticky;left:0;background:var(--bg)}
  nav{gap:2px 18px}
}
@media(pointer:coarse){
  nav a,.numbers>summary{padding:8px 0}
}
@media print{
  :root{--bg:#fff;--raised:#f5f6f6;--ink:#000;--soft:#444;--line:#ccc;--blue:#0072b2;--orange:#d55e00;
    --orange-ink:#a84a00}
  body{font-size:10.5pt}
  main,footer{max-width:none;padding:0}
  nav,.skip{display:none}
  .verdict{padding-top:0}
  h1{font-size:26pt;margin-top:24pt}
  section{grid-template-columns:minmax(0,1fr);padding:18pt 0}
  section>header{break-after:avoid}
  tr,.chart,.tiles div{break-inside:avoid}
  h3{break-after:avoid}details::details-content{content-visibility:visible;block-size:auto}
  .scroll{overflow:visible}
  *{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
"""

# eleven steps of one hue, deeper with the score
CSS = CSS.replace(
    "HEAT", "\n".join(f".h{n}{{background:rgb(var(--heat)/{n * 0.032:.3f})}}" for n in range(11))
)
