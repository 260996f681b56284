// Shows again what a node has said: the server repeats the results of a node that it need not run, but the page draws
// the text of a running node only.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

// the page reads the text as HTML, with [[label|url]] for links; names of files and people may hold either
const MEANT = { "&": "&amp;", "<": "&lt;", ">": "&gt;", "[[": "[&#91;" };

function asWritten(text) {
  return text.replace(/[&<>]|\[\[/g, (found) => MEANT[found]);
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
