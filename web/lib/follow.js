/** Views on nodes that follow a run by the server's messages. */
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { allNodes, isOf, nodeById } from "./graph.js";
import { LAST_RUN, recall, remember } from "./panel.js";
import { fitHeight } from "./widgets.js";

/**
 * Gives every node of a class a view that shows each message of an event. A page that is loaded again shows the last one.
 *
 * create: node -> {show(message, when), say(when), stopped(), refresh(), newest}; when: said of a message that is not of the run
 * going on.
 */
export function follow({ name, event, comfyClass, create }) {
  const views = new WeakMap();
  const shownViews = () => allNodes(app.rootGraph ?? app.graph).flatMap((node) => views.get(node) ?? []);
  app.registerExtension({
    name,
    setup() {
      api.addEventListener(event, ({ detail }) => {
        const root = app.rootGraph ?? app.graph;
        const node = nodeById(root, detail.node);
        if (!views.has(node) || !isOf(node, detail, root.id)) return;
        remember(node, event, detail);
        views.get(node).show(detail);
      });
      api.addEventListener("execution_start", () => shownViews().forEach((view) => view.say(LAST_RUN)));
      api.addEventListener("execution_interrupted", () => shownViews().forEach((view) => view.stopped()));
    },
    nodeCreated(node) {
      if (node.comfyClass !== comfyClass) return;
      views.set(node, create(node));
      fitHeight(node);
    },
    async loadedGraphNode(node) {
      const view = views.get(node);
      if (!view) return;
      view.refresh();
      const earlier = await recall(node, event);
      if (earlier && !view.newest) view.show(earlier, LAST_RUN);
    },
  });
}
