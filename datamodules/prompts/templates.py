"""Chat templates: how a conversation becomes the text that a model reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerFast

from saccade.datamodules.prompts.conversation import Message


class ChatTemplate:
    """Turns conversations into token ids.

    Args:
        tokenizer: Tokenizer of the model.
        template: `auto` for the tokenizer's chat template, or plain text with a warning if it has none; `none` for
            plain text; otherwise the path of a Jinja file.
        source: Where the tokenizer is from, for messages.

    Raises:
        ValueError: The file of the template cannot be read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: str, source: str) -> None:
        self.tokenizer = tokenizer
        self.template = read_template(template)
        if template == "auto":
            self.template = tokenizer.get_chat_template() if tokenizer.chat_template else None
            if self.template is None:
                rank_zero_info(
                    f"saccade: the tokenizer of {source} has no chat template, so prompts are plain text: name a file"
                    " with data.template to use one, or set it to none."
                )

    def encode(self, messages: Sequence[Message], place: str) -> list[int]:
        """Encode a conversation up to the point where the model answers.

        Args:
            messages: The messages, the last one a question.
            place: File and line, for messages.

        Returns:
            Token ids, with the special tokens of the template. Plain text is the contents of all messages, a blank
            line between them, with the special tokens that the tokenizer adds itself.

        Raises:
            ValueError: The template refuses the messages.
        """
        if self.template is None:
            return list(self.tokenizer("\n\n".join(message["content"] for message in messages))["input_ids"])
        return self._encoded(self._rendered(messages, place))

    def encode_answer(self, messages: Sequence[Message], answer: str, place: str, ended: bool = True) -> list[int]:
        """Encode the answer to a conversation, as the model would write it behind `encode`.

        Args:
            messages: The messages, the last one a question.
            answer: The answer.
            place: File and line, for messages.
            ended: Whether the answer ends where its text does.

        Returns:
            Token ids of the text, and if it is ended the token that ends an answer: the special token that the template
            writes behind it, else the end of sequence.

        Raises:
            ValueError: The template refuses the messages.
        """
        ids = self._encoded(answer)
        if not ended:
            return ids
        end = self.tokenizer.eos_token_id
        if self.template is not None:
            whole = self._rendered([*messages, {"role": "assistant", "content": answer}], place, asks=False)
            behind = self._encoded(whole.rpartition(answer.strip())[2].lstrip())
            if behind and behind[0] in self.tokenizer.all_special_ids:
                end = behind[0]
        return [*ids, int(end)]

    def encode_visual(
        self,
        messages: Sequence[Message],
        media: Sequence[tuple[str, str]],
        counts: dict[int, int],
        place: str,
        as_text: bool = False,
    ) -> list[int]:
        """Encode a conversation whose first question is about images or videos.

        Args:
            messages: The messages, the last one a question.
            media: For each image or video its kind, `image` or `video`, and the text that stands for it.
            counts: By placeholder token, how many there must be.
            place: File and line, for messages.
            as_text: Let the template write the texts that stand for images and videos, not its own.

        Returns:
            Token ids with the placeholders.

        Raises:
            ValueError: The template refuses the messages, or does not write the placeholders.
        """
        first = next(index for index, message in enumerate(messages) if message["role"] == "user")
        question = messages[first]["content"]
        marked = "".join(text for _, text in media) + question
        forms: list[Any] = [marked]
        if self.template is None:
            texts = [message["content"] for message in messages]
            texts[first] = marked
            return list(self.tokenizer("\n\n".join(texts))["input_ids"])
        # templates of processors read lists of parts; those of tokenizers mostly texts, or only some kinds of parts
        if not as_text:
            forms.insert(0, [*({"type": kind} for kind, _ in media), {"type": "text", "text": question}])
        failure: ValueError | None = None
        for form in forms:
            changed: list[Any] = list(messages)
            changed[first] = {"role": "user", "content": form}
            try:
                ids = self._encoded(self._rendered(changed, place))
            except ValueError as error:
                failure = error
                continue
            if all(ids.count(token) == count for token, count in counts.items()):
                return ids
        raise failure or ValueError(
            f"{place}: template must have places for images and videos, got one without: set data.template to the"
            " template of the model's processor."
        )

    def _rendered(self, messages: Sequence[Any], place: str, asks: bool = True) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), chat_template=self.template, tokenize=False, add_generation_prompt=asks
            )
        except Exception as error:  # a template is a program, which may fail in any way
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{place}: messages must be such that the chat template takes them, got {reason!r}: change the roles,"
                " leave the system prompt out, or name another file with data.template."
            ) from error
        return str(text)

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def read_template(template: str) -> str | None:
    """Read the file of a chat template.

    Args:
        template: `auto`, `none` or a path.

    Returns:
        The template; None for `auto` and `none`.

    Raises:
        ValueError: The file cannot be read, or is empty.
    """
    if template in ("auto", "none"):
        return None
    try:
        text = Path(template).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ValueError(
            f"template must be auto, none or a Jinja file, got {template!r} ({reason}): check the path."
        ) from error
    if not text.strip():
        raise ValueError(f"template must be auto, none or a Jinja file, got {template!r}, which is empty: fill it.")
    return text
