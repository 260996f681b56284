"""Names and texts of strangers on the page: they are read as text, and nothing in them runs."""

import shutil

import pytest
import torch
from kinds import ADD, both_kinds_of_nodes
from PIL import Image
from safetensors.torch import save_file
from strange import HOSTILE_TEXTS
from tally import INPUTS, count, tries

FILE_NAMES = [text for text in HOSTILE_TEXTS if "/" not in text and "\\" not in text]
MADE = "img[src='x'], svg[onload], iframe[srcdoc], [onmouseover], a[href^='javascript:']"
OWNED = f"""() => window.owned ?? document.querySelector("{MADE}")?.outerHTML ?? null"""
SHOWN = "text => document.body.innerText.replace(/\\s+/g, ' ').includes(text)"
GRAPH = (
    "([file, folder, names, report, prompt]) => { "
    + ADD
    + """
  window.app.graph.clear();
  const tiny = add('VCD_TinyModel', [40, 40]);
  const id = add('VCD_IdLoader', [40, 240], { file, class_word: '' });
  add('VCD_Pictures', [40, 480], { folder });
  const text = add('VCD_IdTextEncode', [420, 40], { prompt });
  tiny.connect(1, text, text.findInputSlot('clip'));
  id.connect(0, text, text.findInputSlot('ids.id0'));
  const clip = add('VCD_TinyClip', [800, 40], { frames: 3 });
  const compare = add('VCD_Compare', [800, 320], { names, report });
  for (const name of ['clips.clip0', 'clips.clip1']) clip.connect(0, compare, compare.findInputSlot(name));
  const shown = add('PreviewAny', [1200, 320]);
  compare.connect(0, shown, 0);
  return { id: id.id, pictures: window.app.graph._nodes.find(n => n.type === 'VCD_Pictures').id, compare: compare.id };
}"""
)


@pytest.fixture
def strangers(page_server):
    """Files and folders with such names: an identity, and a folder of pictures with one that is not read."""
    base, made = page_server.host.base, []
    for i, name in enumerate(FILE_NAMES):
        file = base / "models" / "embeddings" / f"vcd_hostile {name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        says = HOSTILE_TEXTS[i % len(HOSTILE_TEXTS)]
        save_file({"emb_params": torch.ones(2, 96)}, file, {"class_word": says, "pictures": says})
        folder = base / "input" / f"vcd_hostile {name}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(folder / "a.png")
        (folder / f"{name}.heic").write_bytes(b"x")
        made += [file, folder / "a.png", folder / f"{name}.heic", folder]
    yield
    for path in made:
        path.rmdir() if path.is_dir() else path.unlink()
    shutil.rmtree(base / "output" / "vcd_hostile", ignore_errors=True)


def run(tab, graph, *values):
    """Build a graph and press Run; the nodes' numbers."""
    nodes = tab.evaluate(graph, list(values))
    tab.page.get_by_test_id("queue-button").first.click()
    tab.page.wait_for_timeout(500)
    entry = tab.server.wait_for_all()
    tab.page.wait_for_timeout(700)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    return nodes, entry


@both_kinds_of_nodes
def test_names_of_strangers_are_text_and_nothing_in_them_runs(tab, strangers, nodes_2):
    tab.page.on("dialog", lambda dialog: (tab.evaluate("() => { window.owned = 'dialog'; }"), dialog.dismiss()))
    asked = []
    tab.page.on("request", lambda request: asked.append(request.url))
    tab.settings(Comfy_VueNodes_Enabled=nodes_2)
    tab.open_template("00_noise_prior")
    tab.page.keyboard.press("Escape")
    for i, name in enumerate(FILE_NAMES[: tries(2, None)]):
        other = HOSTILE_TEXTS[(i + 5) % len(HOSTILE_TEXTS)].replace(",", "")
        report = f"vcd_hostile/{nodes_2:d}{i}"
        values = f"vcd_hostile {name}.safetensors", f"vcd_hostile {name}", f"{name}, {other}", report, f"V* {other}"
        for _ in range(1 if i else 2):  # a second time the server repeats what it kept, and web/js shows it
            nodes, entry = run(tab, GRAPH, *values)
            told = entry["outputs"][str(nodes["pictures"])]["text"][0]
            assert name in told
            tab.page.wait_for_function(SHOWN, arg=" ".join(told.split()))
            assert tab.evaluate(OWNED) is None, name
            count(INPUTS)
    assert [url for url in asked if not url.startswith((tab.server.url, "data:", "blob:"))] == []
    tab.shot(f"hostile_names{'_nodes2' if nodes_2 else ''}")
    assert tab.errors() == []
