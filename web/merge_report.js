/** The report on LoRACLR Merge: how far each concept, and each kind of layer, is from what its LoRA alone would give. */
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { bars, percent } from "./lib/errors.js";
import { allNodes, isOf, MERGE } from "./lib/graph.js";
import { addPanel, LAST_RUN, recall, remember } from "./lib/panel.js";
import { fitHeight } from "./lib/widgets.js";

const OUTPUT = "loraclr_merge"; // nodes/merge.py
const HEIGHT = 220;
const PROMISE = "After a merge, its report appears here: how near each concept is to its own LoRA.";

function element(tag, { text, className, title, children = [] } = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  if (title) made.title = title;
  made.append(...children);
  return made;
}

function barsOf(errors) {
  const made = bars(errors).map(({ title, share, colour }) => {
    const of = `${percent(share)} of the plain model's error`;
    const bar = element("div", { className: "loraclr-bar", title: `${title}: ${of}` });
    bar.style.width = `${Math.min(100, 100 * share)}%`;
    bar.style.setProperty("--bar", colour);
    return bar;
  });
  return element("td", { className: "loraclr-bars", children: made });
}

function table(heads, rows) {
  const head = element("tr", { children: heads.map((text) => element("th", { text })) });
  return element("table", { children: [head, ...rows.map((cells) => element("tr", { children: cells }))] });
}

/** when: said of a report that is not of the run going on. */
function fill(root, report, when) {
  const copy = element("button", { text: "Copy as Markdown" });
  copy.type = "button";
  copy.addEventListener("click", async () => {
    // Browsers give pages the clipboard only over https and on this machine, and may ask the user.
    const copied = await navigator.clipboard?.writeText(report.markdown).then(
      () => "Copied",
      () => "Blocked by the browser: use the report output",
    );
    copy.textContent = copied ?? "Needs https: use the report output";
    setTimeout(() => (copy.textContent = "Copy as Markdown"), 1500);
  });
  const badge = element("span", { className: "loraclr-when", text: when });
  const cell = (text, title) => element("td", { text, title });
  const sentences = (report.verdicts ?? []).map(({ concept, text }) =>
    element("div", { className: "loraclr-verdict", children: [element("b", { text: concept }), `: ${text}`] }),
  );
  const parts = [
    element("div", { className: "loraclr-row", children: [element("span", { text: `solver: ${report.solver}` }), badge, copy] }),
    ...sentences,
    table(
      ["concept", "keys", "skipped", "error: plain, stacked, merged"],
      report.concepts.map((each) => [cell(each.name), cell(each.matched), cell(each.skipped), barsOf(each)]),
    ),
  ];
  if (report.groups.length) {
    parts.push(
      table(
        ["layers", "", "margin active", "error: plain, stacked, merged"],
        report.groups.map((each) => [
          cell(each.name.split(" … ").at(-1), each.name),
          cell(`× ${each.count}`),
          cell(percent(each.margin_active)),
          barsOf(each),
        ]),
      ),
    );
  }
  root.replaceChildren(...parts);
  root.classList.remove("loraclr-empty");
}

const roots = new WeakMap();

app.registerExtension({
  name: "loraclr.merge_report",
  setup() {
    api.addEventListener("execution_start", () => {
      for (const node of allNodes(app.rootGraph ?? app.graph)) {
        const badge = roots.get(node)?.querySelector(".loraclr-when");
        if (badge) badge.textContent = LAST_RUN;
      }
    });
  },
  nodeCreated(node) {
    if (node.comfyClass !== MERGE) return;
    const promise = element("div", { className: "loraclr-promise", text: PROMISE });
    const root = element("div", { className: "loraclr-panel loraclr-report loraclr-empty", children: [promise] });
    addPanel(node, "report_panel", root, { height: HEIGHT });
    roots.set(node, root);
    fitHeight(node);
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      const [report] = output?.[OUTPUT] ?? [];
      if (!report || !isOf(node, report, (app.rootGraph ?? app.graph).id)) return;
      remember(node, OUTPUT, report);
      fill(root, report, "");
    };
  },
  async loadedGraphNode(node) {
    const root = roots.get(node);
    const earlier = root && (await recall(node, OUTPUT));
    if (earlier && root.classList.contains("loraclr-empty")) fill(root, earlier, LAST_RUN);
  },
});
