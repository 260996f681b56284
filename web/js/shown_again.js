// Shows again what a node has said: the server repeats the results of a node that it need not run, but the page draws
// the text of a running node only.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

// The classic page reads the text as HTML, Nodes 2.0 as Markdown; names of files and people may hold either.
function asWritten(text) {
  return text.replace(/\\([\\`*[\]<>])|\\(?!\|)|[&<>[\]`*_~]/g, (found, told) => `&#${(told ?? found).charCodeAt(0)};`);
}

app.registerExtension({
  name: "VideoCustomDiffusion.Text",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name?.startsWith("VCD_")) return;
    const before = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      before?.apply(this, arguments);
      const text = output?.text?.[0];
      if (text && this.graph === app.canvas.graph) {
        api.dispatchCustomEvent("progress_text", { nodeId: String(this.id), text: asWritten(text) });
      }
    };
  },
});
