"""Long captions of scenes with varied wording, and the count of the facts that a text states correctly."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from saccade.datamodules.video import lexicon
from saccade.datamodules.video.scenes import MovingDigit, Scene

MIN_WORDS, MAX_WORDS = 60, 150

PROMPTS = (
    "Describe this video in detail.",
    "What happens in the clip? Tell everything you can see.",
    "Write a detailed caption for this video.",
    "Please give a full description of the film.",
    "Explain what is shown, with all details.",
)
LIST_PROMPT = "List the facts."
"""The prompt for a `fact_list`; the prompts above are for a `caption`."""

_OPENINGS = (
    "This short film shows {count} on {background}.",
    "{count} can be seen in this clip, set on {background}.",
    "The video takes place on {background} and presents {count}.",
    "In this recording, {count} cross {background}.",
    "On {background}, the camera shows {count}.",
)
_BACKGROUND_ONLY = (
    "Everything takes place on {background}.",
    "Behind it all there is {background}.",
    "The scenery is {background} and nothing more.",
    "The camera looks at {background}.",
)
_COUNT_ONLY = (
    "Altogether the viewer sees {count}.",
    "The clip contains {count} in total.",
    "Counting carefully gives {count}.",
    "That makes {count} over the whole film.",
)
_MOVES = ("drifts", "glides", "slides", "moves", "travels", "floats", "wanders")
_MOVING = ("drifting", "gliding", "sliding", "moving", "travelling", "floating", "wandering")
_COMES = ("appears", "comes into view", "shows itself", "can be seen", "enters the picture")
_NOUNS = (
    "{size} {colour} {digit}",
    "{colour} {size} {digit}",
    "{size} handwritten {digit} in {colour}",
    "{digit} that is {size} and {colour}",
    "{colour} {digit} of {size} height",
)
_PACES = ("at a steady pace", "without any hurry", "in a calm way", "smoothly", "along a straight path")
_FILLERS = (
    "The camera itself stays perfectly still.",
    "Nothing else disturbs the picture.",
    "The strokes look as if a person had written them with a thick pen.",
    "The movement is smooth and easy to follow.",
    "There is no sound and no text besides this.",
    "The light does not change during the recording.",
    "Each shape keeps its look as long as it is visible.",
    "The mood of the film is quiet and a bit playful.",
    "It is a simple scene without people or objects.",
    "The edges of the strokes are soft but clear.",
    "Whoever watches it will find the handwriting quite natural.",
    "The recording is brief and has no cuts.",
    "The motion follows a straight line as far as anybody can judge.",
    "Shapes of this kind are known from forms and envelopes.",
    "The picture is sharp enough to read without effort.",
)


def caption(scene: Scene, random: np.random.Generator) -> str:
    """Write a caption with all facts of a scene, in 60 to 150 words (ours).

    Args:
        scene: The scene.
        random: Generator for the choice of words, order and additional sentences; equal states give equal captions.

    Returns:
        Several sentences, in which `slot_accuracy` finds every fact.
    """
    count = _pick(random, lexicon.COUNTS[str(len(scene.digits))])
    background = _pick(random, lexicon.BACKGROUNDS[scene.background])
    story = _story(scene, random)
    before: list[str] = []
    after: list[str] = []
    if random.random() < 0.5:
        opening = _pick(random, _OPENINGS)
        if len(scene.digits) == 1:
            opening = opening.replace(" cross ", " crosses ")
        before.append(opening.format(count=count, background=background))
    else:
        for choices, words in ((_BACKGROUND_ONLY, background), (_COUNT_ONLY, count)):
            sentence = _pick(random, choices).format(background=words, count=words)
            (before if random.random() < 0.5 else after).append(sentence)
    if len(scene.digits) > 1 and random.random() < 0.4:
        after.append(_recap(scene, random))
    sentences = [*before, *story, *after]
    length = sum(len(sentence.split()) for sentence in sentences)
    wanted = random.integers(MIN_WORDS, MIN_WORDS + 40)
    # fillers have a fixed cyclic order with a random start, and most of them follow the facts: if all were equally
    # likely at each place, a model would learn to repeat the most probable one
    fillers: list[str] = []
    start = int(random.integers(len(_FILLERS)))
    for filler in _FILLERS[start:] + _FILLERS[:start]:
        longer = length + len(filler.split())
        if length >= wanted or longer > MAX_WORDS:
            break
        fillers.append(filler)
        length = longer
    end = len(sentences)
    places = sorted(end if random.random() < 0.7 else int(random.integers(1, end + 1)) for _ in fillers)
    for place, filler in reversed(list(zip(places, fillers, strict=True))):
        sentences.insert(place, filler)
    return " ".join(_capital(sentence) for sentence in sentences)


def fact_list(scene: Scene) -> str:
    """Write a short list of all facts of a scene, in a fixed order (ours).

    Nearly every token of a list depends on the video, but few tokens of a caption do. So an untrained model learns to
    use the video from lists many times sooner.

    Args:
        scene: The scene.

    Returns:
        One sentence: the background, the count, and the label, size, colour and direction of each digit.
        `slot_accuracy` finds every fact in it.
    """
    digits = ", ".join(
        f"{ordinal} {lexicon.DIGITS[digit.label]} {digit.size} {digit.colour} {digit.direction}"
        for ordinal, digit in zip(lexicon.ORDINALS, scene.digits, strict=False)
    )
    count = len(scene.digits)
    return f"A {scene.background} backdrop, {count} digit{'s' if count > 1 else ''}: {digits}."


def _story(scene: Scene, random: np.random.Generator) -> list[str]:
    """Sentences about each digit, in the order of appearance or sometimes in the reverse order."""
    count = len(scene.digits)
    numbers = list(range(1, count + 1))
    backwards = count > 1 and random.random() < 0.15
    told: list[str] = []
    for number in reversed(numbers) if backwards else numbers:
        digit = scene.digits[number - 1]
        if count == 1:
            marker = _pick(random, ("", "", "at the start"))
        elif number == 1 and not backwards:
            marker = _pick(random, (*lexicon.FIRST, "the first of them:"))
        elif number == count and random.random() < 0.5:
            marker = _pick(random, (*lexicon.LAST, "the last of them:"))
        elif backwards or random.random() < 0.4:
            # "next" would refer to the next one in the text
            marker = f"in {lexicon.ORDINALS[number - 1]} place"
        else:
            marker = _pick(random, lexicon.NEXT)
        told.append(_about(digit, marker, random))
    return told


def _about(digit: MovingDigit, marker: str, random: np.random.Generator) -> str:
    """One sentence about a digit, or two that belong together."""
    noun = _noun(digit, random)
    direction = _pick(random, lexicon.DIRECTIONS[digit.direction])
    way = f"{direction} {_pick(random, _PACES)}" if random.random() < 0.4 else direction
    lead = marker if not marker or marker.endswith(":") else f"{marker},"
    comes = _pick(random, _COMES)
    moves = f"{_pick(random, _MOVES)} {way}"
    match random.integers(4):
        case 0:
            told = f"{lead} {noun} {moves}."
        case 1:
            told = f"{lead} {noun} {comes}, {_pick(random, _MOVING)} {way}."
        case 2:
            told = f"{lead} {noun} {comes}. It {moves}."
        case _:
            look = f"{_pick(random, lexicon.SIZES[digit.size])} and {_pick(random, lexicon.COLOURS[digit.colour])}"
            told = f"{lead} {_article(_digit_word(digit.label, random))} {comes}. It is {look}, and it {moves}."
    return told.strip()


def _noun(digit: MovingDigit, random: np.random.Generator) -> str:
    return _article(
        _pick(random, _NOUNS).format(
            size=_pick(random, lexicon.SIZES[digit.size]),
            colour=_pick(random, lexicon.COLOURS[digit.colour]),
            digit=_digit_word(digit.label, random),
        )
    )


def _recap(scene: Scene, random: np.random.Generator) -> str:
    """A sentence with all digits in their order."""
    names = [_digit_word(digit.label, random) for digit in scene.digits]
    start = _pick(random, ("So the order is", "In short, we read", "The sequence is therefore"))
    middle = "".join(f", then {name}" for name in names[1:-1])
    return f"{start} first {names[0]}{middle}, and finally {names[-1]}."


def _digit_word(label: int, random: np.random.Generator) -> str:
    return lexicon.DIGITS[label] if random.random() < 0.7 else str(label)


def _article(noun: str) -> str:
    # numerals are read aloud: "an 8"
    return f"{'an' if noun[0] in 'aeiou8' and not noun.startswith('one') else 'a'} {noun}"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _pick(random: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[random.integers(len(choices))]


@dataclass(frozen=True)
class SlotScore:
    """The number of facts of a scene that a text states correctly.

    Attributes:
        right: Number of correctly stated facts.
        asked: Number of facts of the scene.
        wrong: Names of the slots that are missing, wrong, or stated in two different ways.
    """

    right: int
    asked: int
    wrong: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of the facts that are stated correctly, 0 to 1."""
        return self.right / self.asked


def told_facts(text: str) -> dict[str, set[str]]:
    """Collect the values that a text gives each slot.

    The text is read from its beginning to its end. "First", "second", ..., "last" name the digit to which the following
    words refer; "then" and "next" refer to the digit after it. Words before any of these refer to the first digit.

    Args:
        text: A caption.

    Returns:
        All different values of each slot (see `Scene.facts`) in the text.
    """
    found: dict[str, set[str]] = defaultdict(set)
    digits: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    place = "1"
    for kind, value in lexicon.claims(text):
        if kind == "place":
            # no digit comes after the last one
            place = value if value != "next" else str(int(place) + 1) if place.isdigit() else "beyond"
        elif kind in ("count", "background"):
            found[kind].add(value)
        else:
            digits[place][kind].add(value)
    # "last" is the count that the text states, or else the number after the digits that it numbers
    told = [int(number) for number in digits if number.isdigit()]
    count = min(found.get("count", ()), default=str(max(told, default=0) + ("last" in digits)))
    for number, slots in digits.items():
        for kind, values in slots.items():
            found[f"{kind} {count if number == 'last' else number}"] |= values
    return dict(found)


def slot_accuracy(text: str, scene: Scene) -> SlotScore:
    """Count the facts of a scene that a text states correctly (ours).

    A missing fact counts as wrong, and so does one that is stated in two different ways. If a text describes more
    digits than the scene has, its count is wrong.

    Args:
        text: A caption, by a model or by the grammar.
        scene: The scene.

    Returns:
        The score.
    """
    told = told_facts(text)
    facts = scene.facts
    if any(slot not in facts for slot in told):
        told["count"] = told.get("count", set()) | {"more"}
    wrong = tuple(slot for slot, value in facts.items() if told.get(slot) != {value})
    return SlotScore(len(facts) - len(wrong), len(facts), wrong)
