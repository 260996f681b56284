// Graphs saved before a node got a widget keep the result that they had: such a widget gets the value that its input
// names as `before`, not its default, which is for new nodes.
import { app } from "../../../scripts/app.js";

function valuesBefore(nodeData) {
  const inputs = { ...nodeData.input?.required, ...nodeData.input?.optional };
  const named = Object.entries(inputs).filter(([, spec]) => spec[1]?.before !== undefined);
  return Object.fromEntries(named.map(([name, spec]) => [name, spec[1].before]));
}

function withValuesBefore(node, saved, before) {
  const widgets = (node.widgets ?? []).filter((widget) => widget.serialize !== false);
  for (const widget of widgets.slice(saved.length)) {
    if (widget.name in before) widget.value = before[widget.name];
  }
}

app.registerExtension({
  name: "VideoCustomDiffusion.SavedGraphs",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name?.startsWith("VCD_")) return;
    const before = valuesBefore(nodeData);
    if (!Object.keys(before).length) return;
    const { onConfigure } = nodeType.prototype;
    nodeType.prototype.onConfigure = function (info) {
      onConfigure?.apply(this, arguments);
      if (Array.isArray(info?.widgets_values)) withValuesBefore(this, info.widgets_values, before);
    };
  },
});
