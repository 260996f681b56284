"""What each value of a conditioning is, by name, and so how it is cut: one table.

A value that no rule knows is refused by name: handed on whole it would be silently wrong.
"""

from __future__ import annotations

from typing import Any

from .text import check_one_row

WHOLE = "whole"  # it has neither frames nor places: a number, a text, a reference picture
ROWS = "rows"  # one row for each frame, or one for all
PLACES = "places"  # something of the whole picture, in its cells or finer; a list of such
COARSE = "coarse"  # the same, or in larger cells
OF_THE_PICTURE = "of the whole picture"  # as PLACES under a tile; left out of a window, which has another size
LATENTS = "latents"  # as PLACES under a tile; a window of them is cut out of the pictures that they show
LATENT_MASKS = "latent masks"  # masks over such latents; a latent frame's pictures or pixels along the channels
BESIDE = "beside"  # pictures that the model lays beside the frames: whole, at the region's size
OWN_OR_WHOLE = "own or whole"  # of the clip where they are as large and as long, and then cut; otherwise whole
TOKENS = "tokens"  # pixel coordinates of each cell of the guides' frames, from those of the picture's corner
OF_ALL_FRAMES = "of all frames"  # whole where all frames are drawn; refused for some of them
GUIDES = "guides"  # how many cells the guides' frames have
MASK, AREA, BOXES, CONTROL = "mask", "area", "boxes", "control"
COVERING = (PLACES, COARSE, OF_THE_PICTURE, LATENTS, LATENT_MASKS)  # what a tile cuts alike
LIMITS = ("mask", "area", "gligen", "control")  # what a conditioning is limited to once the sampler holds it

RULES = {
    # what a conditioning is limited to
    "mask": MASK,
    "area": AREA,
    "set_area_to_bounds": OF_THE_PICTURE,  # the host would look for the bounds of the cut mask
    "gligen": BOXES,
    "control": CONTROL,
    # texts
    "cross_attn": ROWS,
    "c_crossattn": ROWS,
    "crossattn_controlnet": ROWS,
    "cross_attn_controlnet": ROWS,
    "pooled_output": ROWS,
    "y": ROWS,  # the pooled text, with SDXL its sizes behind it
    "attention_mask": ROWS,
    "t5xxl_ids": ROWS,
    "t5xxl_weights": ROWS,
    "clip_text": ROWS,
    "clip_text_pooled": ROWS,
    "text_embedding_mask": ROWS,
    "text_embedding_mask_t5": ROWS,
    "encoder_hidden_states_t5": ROWS,
    "encoder_hidden_states_llama3": ROWS,
    "conditioning_llama3": ROWS,
    "conditioning_mt5xl": ROWS,
    "attention_mask_mt5xl": ROWS,
    "conditioning_byt5small": ROWS,
    "txt_byt5": ROWS,
    "time_context": ROWS,
    "time_conditioning": ROWS,
    # latents of the picture that is drawn
    "c_concat": PLACES,
    "image_cond": PLACES,
    "denoise_mask": PLACES,
    "condition": PLACES,
    # what inpainting and image-to-video models are shown; without it inpainting models draw all of a window anew
    "concat_latent_image": LATENTS,
    "concat_mask": LATENT_MASKS,
    # latents of videos that control the clip
    "vace_context": PLACES,
    "vace_frames": LATENTS,
    "vace_mask": LATENT_MASKS,
    "camera_conditions": PLACES,
    "control_video": LATENTS,
    "pose_latents": COARSE,
    "pose_video_latent": LATENTS,
    "reference_motion": PLACES,
    "ref_latent": PLACES,  # the clip's first frame
    "context_latents": OWN_OR_WHOLE,
    # pictures that stand beside the frames
    "time_dim_concat": BESIDE,
    "reference_latent": BESIDE,
    # guides of LTX-Video, frames that are appended to the latent
    "keyframe_idxs": TOKENS,
    "guide_attention_entries": GUIDES,
    # pictures to draw from, seen whole whatever is drawn
    "reference_latents": BESIDE,  # pictures without frames as they are
    "ref_latents": WHOLE,
    "ref_contexts": WHOLE,
    "siglip_feats": WHOLE,
    "clip_vision_output": WHOLE,
    "clip_vision_outputs": WHOLE,
    "unclip_conditioning": WHOLE,
    "clip_img": WHOLE,
    "clip_fea": WHOLE,
    "clip_vision_output_ref": WHOLE,
    "clip_fea_ref": WHOLE,
    # numbers that the host keeps in tensors
    "guidance": WHOLE,
    "image_meta_size": WHOLE,
    "guiding_frame_index": WHOLE,
    "c_size": WHOLE,
    "c_ar": WHOLE,
    "sca": WHOLE,
    "crp": WHOLE,
    # sound, and what MiniMax H3 draws from
    "audio_denoise_mask": WHOLE,
    "ref_audio": WHOLE,
    **dict.fromkeys(("minimax_payload", "minimax_refs", "minimax_token_tags"), WHOLE),
    "minimax_keyframes": OF_THE_PICTURE,
    # sound and faces along time, which a tile sees whole
    "audio_embed": OF_ALL_FRAMES,
    "face_pixel_values": OF_ALL_FRAMES,
    "face_video_pixels": OF_ALL_FRAMES,
    # weights that hold for this conditioning
    "hooks": WHOLE,
}


def rule_of(name: str, value: Any) -> str:
    """The rule of ``RULES`` for a value; ``WHOLE`` for numbers, texts and lists of them, whatever their name.

    Raises:
        ValueError: no rule knows a value that may have frames or places.
    """
    if name in RULES:
        return RULES[name]
    if is_plain(value):
        return WHOLE
    raise ValueError(
        f"The conditioning holds '{name}' ({type(value).__name__}), which this pack cannot cut to a part of the clip. "
        "Leave out the node that puts it there, or use the stage without it."
    )


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text or nothing, or is made of such alone."""
    if isinstance(value, dict):
        return all(is_plain(part) for part in value.values())
    if isinstance(value, (list, tuple, set)):
        return all(is_plain(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str, bytes))


def check_conditioning(conditioning: Any, frames: int, name: str, of_video: bool = False) -> None:
    """Raise ``ValueError`` where a conditioning has rows for another number of frames than the clip, or a value that no
    rule knows.

    Args:
        of_video: the model draws all frames from one row.
    """
    for tensor, options in conditioning:
        if of_video:
            check_one_row(tensor, name)
        for option, value in options.items():
            rule_of(option, value)
        for what, found in (("rows", tensor.shape[0]), ("mask frames", len(options.get("mask", "1")))):
            if found not in (1, frames):
                raise ValueError(
                    f"{name} has {found} {what}, but the clip has {frames} frames; expected 1 or {frames}."
                )
