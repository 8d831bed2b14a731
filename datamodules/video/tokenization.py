"""Tokenizers of video-language models: their special tokens, and prompts with a video before the question."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from saccade.common.checks import check_count
from saccade.datamodules.text.tokenization import MIN_VOCAB_SIZE, PAD, load_tokenizer, train_tokenizer
from saccade.datamodules.video.frames import FRAMES_PER_SECOND
from saccade.datamodules.video.preprocessing import FORMATS, Family, VisualFormat, visual_inputs

START, END = "<|im_start|>", "<|im_end|>"
_BEGIN, _FINISH = "<|vision_start|>", "<|vision_end|>"
_QWEN = ("<|endoftext|>", START, END, _BEGIN, _FINISH, "<|image_pad|>", "<|video_pad|>")
SPECIAL_TOKENS: dict[str, tuple[str, ...]] = {
    family: (START, END, "<image>", "<video>") if form.pooled else _QWEN for family, form in FORMATS.items()
}
"""Special tokens of each family, with the names of the published models."""
IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105 - no password
_QWEN_PADS = (IMAGE_TOKEN, "<|video_pad|>")
_VISUAL_TOKENS: dict[str, tuple[tuple[str, str], ...]] = {
    family: (("<image>", "<video>"), _QWEN_PADS) if form.pooled else (_QWEN_PADS,) for family, form in FORMATS.items()
}
"""Names of image and video token, the published ones first. Text models of Qwen2.5 have the others unused."""

# for messages whose content is a text or a list of video and text parts, as for the processors of transformers
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}PLACE"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_video_tokenizer(texts: Iterable[str], vocab_size: int, family: Family) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with the special tokens and the chat template of a family.

    Args:
        texts: Prompts and answers.
        vocab_size: Most tokens, including special ones; a small corpus gives fewer.
        family: Model family.

    Returns:
        The tokenizer; its end-of-sequence token is `<|im_end|>`.

    Raises:
        ValueError: The vocabulary cannot hold all bytes.
    """
    least = MIN_VOCAB_SIZE + len(SPECIAL_TOKENS[family])
    check_count("vocab_size", vocab_size, least, f"bytes and the special tokens of {family} need as many")
    core = train_tokenizer(texts, vocab_size - len(SPECIAL_TOKENS[family])).backend_tokenizer
    core.add_special_tokens(list(SPECIAL_TOKENS[family]))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD if FORMATS[family].pooled else "<|endoftext|>",
        chat_template=_template(family, _VISUAL_TOKENS[family][0][1]),
        clean_up_tokenization_spaces=False,
    )


def _template(family: Family, video_token: str) -> str:
    return _CHAT_TEMPLATE.replace("PLACE", _between_marks(family, video_token))


def visual_tokens(tokenizer: PreTrainedTokenizerBase, family: str) -> tuple[str, str]:
    """Return the names of the image and the video token of a tokenizer; those of the published models if it has none.

    Args:
        tokenizer: The tokenizer.
        family: Model family.
    """
    vocabulary = tokenizer.get_vocab()
    pairs = _VISUAL_TOKENS[family]
    return next((pair for pair in pairs if all(token in vocabulary for token in pair)), pairs[0])


def load_video_tokenizer(source: str, family: Family) -> PreTrainedTokenizerFast:
    """Load a tokenizer and check that it has the special tokens of a family.

    A language model for chats becomes a LLaVA-OneVision with its own tokenizer, if that has tokens of Qwen2.5 for
    pictures, which are unused there. Where it has none, they are added behind all others, and the model needs unused
    rows in its embedding. Either way it gets the chat template of the family, whose answers end with `<|im_end|>`.

    Args:
        source: Folder or Hugging Face hub id of a tokenizer, a processor or a model.
        family: Model family.

    Returns:
        The tokenizer.

    Raises:
        ValueError: It cannot be loaded, or lacks a special token.
    """
    tokenizer = load_tokenizer(source)
    vocabulary = tokenizer.get_vocab()
    own = _VISUAL_TOKENS[family][0]
    if FORMATS[family].pooled and {START, END} <= vocabulary.keys() and not vocabulary.keys() & set(own):
        if not vocabulary.keys() >= set(_QWEN_PADS):
            tokenizer.add_special_tokens({"additional_special_tokens": list(own)}, replace_extra_special_tokens=False)
            vocabulary = tokenizer.get_vocab()
        tokenizer.chat_template = _template(family, visual_tokens(tokenizer, family)[1])
        tokenizer.eos_token = END  # that of a base model, or of a conversion, may end documents instead of answers
    needed = [token for token in SPECIAL_TOKENS[family] if token != "<|endoftext|>"]  # noqa: S105 - no password
    needed = [*(token for token in needed if token not in own), *visual_tokens(tokenizer, family)]
    if missing := [token for token in needed if token not in vocabulary]:
        raise ValueError(
            f"tokenizer must have the token {missing[0]!r} for family={family}, got {source!r} without: choose the"
            " tokenizer of a model of this family."
        )
    # a tokenizer that was converted from another format may know its special tokens as words only, and split them
    if split := [token for token in needed if tokenizer.encode(token, add_special_tokens=False) != [vocabulary[token]]]:
        tokenizer.add_special_tokens({"additional_special_tokens": split}, replace_extra_special_tokens=False)
    return tokenizer


def visual_format(
    tokenizer: PreTrainedTokenizerFast,
    family: Family,
    height: int,
    width: int,
    patch_size: int = 14,
    merge_size: int = 2,
    max_pixels: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> VisualFormat:
    """Make the visual format of a model.

    Args:
        tokenizer: With the special tokens of the family.
        family: Model family.
        height: Height of a frame after resizing, in pixels: a multiple of `patch_size * merge_size`; any for
            LLaVA-OneVision.
        width: Width of a frame after resizing, in pixels, like `height`; for LLaVA-OneVision equal to the height.
        patch_size: Side of a patch, in pixels.
        merge_size: Patches along each axis that become one token; for LLaVA-OneVision it must be 2.
        max_pixels: Most pixels of a frame that keeps its aspect ratio; None resizes every frame to height and width.
        mean: Mean of the colours; None for that of the family's processor.
        std: Standard deviation of the colours; None for that of the family's processor.

    Returns:
        The format, with the ids of the special tokens.

    Raises:
        ValueError: The sizes do not fit together.
    """
    for name, value in (("patch_size", patch_size), ("merge_size", merge_size)):
        check_count(name, value)
    llava = FORMATS[family].pooled
    if llava and merge_size != 2:
        raise ValueError(f"merge_size must be 2 for llava_onevision, got {merge_size}: set it to 2.")
    factor = patch_size if llava else patch_size * merge_size
    for name, side in (("height", height), ("width", width)):
        if llava and side < patch_size:
            raise ValueError(f"{name} must be at least patch_size = {patch_size}, got {side}: raise it.")
        # the vision tower of LLaVA-OneVision ignores pixels that do not fill a patch
        if not llava and (side < factor or side % factor):
            raise ValueError(f"{name} must be a multiple of patch_size * merge_size = {factor}, got {side}: change it.")
    if llava and height != width:
        raise ValueError(f"width must be the height, {height}, for llava_onevision, got {width}: use square frames.")
    if max_pixels is not None and (llava or max_pixels < factor**2):
        rule = "must be null for llava_onevision" if llava else f"must be at least {factor**2}, one token"
        raise ValueError(f"max_pixels {rule}, got {max_pixels}: change it.")

    vocabulary = tokenizer.get_vocab()
    image_token, video_token = visual_tokens(tokenizer, family)
    return VisualFormat(
        family=family,
        patch_size=patch_size,
        merge_size=merge_size,
        temporal_patch_size=1 if llava else 2,
        height=height,
        width=width,
        max_pixels=max_pixels,
        video_token=video_token,
        video_token_id=vocabulary[video_token],
        image_token_id=vocabulary[image_token],
        vision_start_token_id=None if llava else vocabulary[_BEGIN],
        vision_end_token_id=None if llava else vocabulary[_FINISH],
        mean=mean or FORMATS[family].mean,
        std=std or FORMATS[family].std,
    )


def _between_marks(family: str, token: str) -> str:
    """An image or a video in a prompt; its token is repeated once for each of its tokens."""
    return f"{token}\n" if FORMATS[family].pooled else f"{_BEGIN}{token}{_FINISH}"


def image_place(visual: VisualFormat, token: str) -> str:
    """The text that stands for an image in a prompt, with its token once."""
    return _between_marks(visual.family, token)


def video_place(visual: VisualFormat, times: Sequence[float]) -> str:
    """The text that stands for a video in a prompt.

    Args:
        visual: Visual format of the model.
        times: When each frame is shown, in seconds; read where the format is timed.

    Returns:
        The video's token once, or, where the format is timed, once for each group of `temporal_patch_size` frames,
        behind the middle between the times of its first and its last frame, as Qwen3-VL's processor writes it.
    """
    marked = _between_marks(visual.family, visual.video_token)
    if not visual.timed:
        return marked
    size = visual.temporal_patch_size
    groups = [times[begin : begin + size] for begin in range(0, len(times), size)]
    return "".join(f"<{(group[0] + group[-1]) / 2:.1f} seconds>{marked}" for group in groups)


def prompt_ids(
    tokenizer: PreTrainedTokenizerFast,
    visual: VisualFormat,
    prompt: str,
    video_tokens: int,
    times: Sequence[float] = (),
) -> list[int]:
    """Tokenize a prompt up to the beginning of the answer.

    Args:
        tokenizer: With the special tokens of the family.
        visual: Visual format of the model.
        prompt: The question.
        video_tokens: Number of tokens of the video.
        times: When each frame is shown, in seconds; read where the format is timed.

    Returns:
        Token ids, with the video before the question.

    Raises:
        ValueError: The question contains a special token.
    """
    refuse_special_tokens(prompt, "prompt", tokenizer)
    text = f"{START}user\n{video_place(visual, times)}{prompt}{END}\n{START}assistant\n"
    ids = tokenizer.encode(text, add_special_tokens=False)
    # a video token is encoded once and then repeated, because encoding thousands of them is slow
    each = video_tokens // ids.count(visual.video_token_id)
    return [token for one in ids for token in [one] * (each if one == visual.video_token_id else 1)]


def refuse_special_tokens(text: str, name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse special tokens in a text, which the tokenizer would encode as special tokens.

    Args:
        text: A question or an answer.
        name: `prompt` or `answer`, for the message.
        tokenizer: Tokenizer of the model, with its special tokens.

    Raises:
        ValueError: The text contains a special token.
    """
    for token in tokenizer.backend_tokenizer.get_added_tokens_decoder().values():
        if token.special and token.content in text:
            raise ValueError(f"{name} must not contain special tokens, got {token.content!r}: remove it.")


def token_types(ids: Tensor, visual: VisualFormat) -> Tensor:
    """Return the type of each token.

    Args:
        ids: Token ids, LongTensor of any shape.
        visual: Visual format of the model.

    Returns:
        The same shape: 0 for text, 1 for an image, 2 for a video.
    """
    return (ids == visual.image_token_id).long() + 2 * (ids == visual.video_token_id).long()


def video_prompt(
    tokenizer: PreTrainedTokenizerFast,
    visual: VisualFormat,
    frames: np.ndarray,
    prompt: str,
    times: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """Make the inputs for a question about a clip, for `generate`.

    Args:
        tokenizer: Tokenizer of the model.
        visual: Visual format of the model, from `VideoCaptions.visual` or `visual_format`.
        frames: The clip, uint8 RGB [F, H, W, 3], for example from `read_clip`.
        prompt: The question.
        times: When each frame is shown, in seconds, for example from `clip_times`; read for Qwen3-VL. None for 24
            frames a second.

    Returns:
        `input_ids` and `attention_mask` LongTensor [1, S], the visual inputs (see `visual_inputs`), and
        `mm_token_type_ids` LongTensor [1, S] for a Qwen.

    Raises:
        ValueError: The frames are not RGB, or the prompt contains special tokens.
    """
    pixels, count = visual_inputs(frames, visual)
    shown = [frame / FRAMES_PER_SECOND for frame in range(len(frames))] if times is None else times
    ids = torch.tensor([prompt_ids(tokenizer, visual, prompt, count, shown)])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    if not visual.pooled:
        inputs["mm_token_type_ids"] = token_types(ids, visual)
    return inputs
