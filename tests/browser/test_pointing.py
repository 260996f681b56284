"""Point at a face: a box drawn by the mouse in ComfyUI's canvas, which is of Nodes 2.0, reaches Face VCD."""

from kinds import ADD

FRAME, SIDE = 5, 128
GRAPH = """frame => {
  window.app.graph.clear();
  ADD
  const join = (from, slot, node, name) => from.connect(slot, node, node.inputs.findIndex(i => i.name === name));
  const clip = add('VCDTest_World', [0, 0], {
    framing: 'medium', action: 'walking', people: 2, seed: 2, control_after_generate: 'fixed', frames: 16,
  });
  const seen = add('VCD_FaceTrack', [340, 0], {pick_frame: frame});
  const boxes = add('CreateBoundingBoxes', [680, 0]);
  const meant = add('VCD_FaceTrack', [1080, 0], {pick_frame: frame});
  join(clip, 0, seen, 'images');
  join(seen, 1, boxes, 'background');
  join(clip, 0, meant, 'images');
  window.pickByBox = () => join(boxes, 1, meant, 'pick');
}""".replace("ADD", ADD)
SAYS = """() => window.app.graph._nodes.findLast(n => n.type === 'VCD_FaceTrack').widgets.map(w => String(w.value))
  .find(text => text.includes('in frames'))"""


def run(tab, begins):
    tab.page.get_by_test_id("queue-button").first.click()
    tab.page.wait_for_function(f"() => (({SAYS})() ?? '').startsWith('{begins}')")


def test_a_box_drawn_by_the_mouse_is_the_face_that_is_meant(tab):
    tab.settings(Comfy_VueNodes_Enabled=True)
    tab.open_template("00_noise_prior")
    tab.page.keyboard.press("Escape")
    tab.evaluate(GRAPH, FRAME)
    run(tab, "2 faces")
    tab.page.wait_for_timeout(2000)
    tab.evaluate("() => window.pickByBox()")
    sides = "window.app.graph._nodes.find(n => n.type === 'CreateBoundingBoxes').widgets.slice(0, 2).map(w => w.value)"
    assert tab.evaluate(f"() => {sides}") == [SIDE, SIDE]  # the canvas shows the frame, and took its size
    stills = "window.app.nodeOutputs[window.app.graph._nodes.find(n => n.type === 'VCD_FaceTrack').id].images.length"
    assert tab.evaluate(f"() => {stills}") == 1 + 8  # the frame to point at comes first
    canvas = tab.page.get_by_test_id("bounding-boxes").locator("canvas").first.bounding_box()

    def to(x, y):
        tab.page.mouse.move(canvas["x"] + x * canvas["width"], canvas["y"] + y * canvas["height"], steps=5)

    to(0.55, 0.1)
    tab.page.mouse.down()
    to(0.95, 0.6)
    tab.page.mouse.up()
    tab.page.wait_for_timeout(500)
    run(tab, "1 face:")
    tab.page.wait_for_timeout(1500)
    tab.shot("pointing")
    assert tab.errors() == []
