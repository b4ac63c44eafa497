/** How the pack's own elements look; in the colours of the page's theme. */

const style = new CSSStyleSheet();
style.replaceSync(`
  .loraclr-panel { display: flex; flex-direction: column; gap: 4px; font: 12px sans-serif; overflow: hidden;
    color: var(--input-text, #ddd); box-sizing: border-box; height: 100%; contain: size; }
  .loraclr-panel button { font: inherit; color: inherit; cursor: pointer; padding: 1px 7px; border-radius: 8px;
    border: 1px solid var(--border-color, #555); background: var(--comfy-input-bg, #222); }
  .loraclr-panel[hidden] { display: none; }
  .loraclr-promise { display: none; flex: 1; align-items: center; justify-content: center; text-align: center; padding: 12px;
    border: 1px dashed var(--border-color, #555); border-radius: 8px; opacity: 0.7; font-size: 13px; }
  .loraclr-empty > .loraclr-promise { display: flex; }
  .loraclr-empty > :not(.loraclr-promise) { display: none; }
  .loraclr-row { display: flex; gap: 6px; align-items: center; justify-content: space-between; flex: none; }
  .loraclr-when:not(:empty) { margin-left: auto; padding: 1px 7px; border-radius: 8px; white-space: nowrap;
    background: var(--warning-background, #8a6100); color: #fff; }
  .loraclr-legend { display: flex; gap: 4px; flex-wrap: wrap; }
  .loraclr-panel .loraclr-chip { border-color: var(--concept); border-left-width: 10px; }
  .loraclr-chip[aria-pressed="false"] { opacity: 0.4; }
  .loraclr-stage { flex: 1; min-height: 0; position: relative; }
  .loraclr-view canvas { position: absolute; width: 100%; height: 100%; object-fit: contain; image-rendering: auto; }
  .loraclr-view svg { flex: 1; min-width: 0; height: 30px; }
  .loraclr-view polyline { stroke: currentColor; stroke-width: 1.5; vector-effect: non-scaling-stroke; }
  .loraclr-train svg { flex: 1; min-height: 40px; width: 100%; }
  .loraclr-train polyline { fill: none; stroke: var(--curve); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
  .loraclr-curve::before { content: ""; display: inline-block; width: 10px; height: 10px; margin-right: 4px; border-radius: 2px;
    background: var(--curve); }
  .loraclr-previews { display: flex; gap: 6px; flex: 2; min-height: 0; }
  .loraclr-previews:empty { display: none; }
  .loraclr-previews figure { flex: 1; min-width: 0; margin: 0; display: flex; flex-direction: column; gap: 2px; }
  .loraclr-previews img { flex: 1; min-height: 0; width: 100%; object-fit: contain; }
  .loraclr-previews figcaption { flex: none; font-size: 11px; text-align: center; white-space: nowrap; overflow: hidden;
    text-overflow: ellipsis; }
  .loraclr-file img { flex: 1; min-height: 0; object-fit: contain; }
  .loraclr-phrases { flex: none; max-height: 100%; display: flex; flex-wrap: wrap; gap: 4px; overflow-y: auto; }
  .loraclr-report { overflow-y: auto; user-select: text; }
  .loraclr-verdict { flex: none; overflow-wrap: anywhere; }
  .loraclr-report table { border-collapse: collapse; width: 100%; }
  .loraclr-report td, .loraclr-report th { padding: 2px 4px; text-align: left; font-weight: normal; white-space: nowrap; }
  .loraclr-report th { opacity: 0.7; white-space: normal; }
  .loraclr-bars { width: 60%; min-width: 90px; }
  .loraclr-bar { height: 5px; margin: 1px 0; min-width: 1px; border-radius: 2px; background: var(--bar); }
  .loraclr-wrong { outline: 1px solid var(--error-text, #ff6b6b); }
  .loraclr-sentence { font: 12px sans-serif; line-height: 1.35; padding: 3px 7px; box-sizing: border-box; border-radius: 4px;
    white-space: pre-line; overflow-wrap: anywhere; user-select: text; color: var(--input-text, #ddd);
    background: var(--comfy-input-bg, #222); border-left: 4px solid var(--error-text, #ff6b6b); }
  .loraclr-wire { border-left-color: #e69f00; }
  .loraclr-last { border-left-color: var(--border-color, #666); }
  .loraclr-popup { position: fixed; z-index: 10000; padding: 3px; border-radius: 6px; font: 13px sans-serif;
    background: var(--comfy-menu-bg, #222); color: var(--input-text, #ddd); border: 1px solid var(--border-color, #555); }
  .loraclr-option { padding: 2px 8px; cursor: pointer; border-radius: 4px; }
  .loraclr-option[aria-selected="true"] { background: var(--comfy-input-bg, #444); }
  .loraclr-problem { color: var(--error-text, #ff6b6b); white-space: normal; }
`);
document.adoptedStyleSheets.push(style);
