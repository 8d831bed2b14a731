"""Say in one sentence what the parser says in a list of all the types that it tried."""

import re

_KEY = re.compile(r'Parser key "([^"]+)"')
_GOT = re.compile(r"^\s*Expected an? (?P<kind>.+)\. Got value: (?P<value>.*)$", re.MULTILINE)
_SUBTYPES = re.compile(r"Subtypes: \[(?P<kinds>.*)\]$", re.MULTILINE)
_GIVEN = re.compile(r"Given value: (?P<value>.*)$", re.MULTILINE)
_NO_CLASS = re.compile(
    r"given class_path 'lightning\.Lightning(Module|DataModule)':\n\s+Option '(?P<option>[\w.]+)' is"
)
_PLAIN = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "settings by name",
    "NoneType": "null",
}


def explained(text: str) -> str:
    """Explain a message about the type of a value, about a missing class, or about an accelerator that is not there.

    Args:
        text: A message of the parser or the trainer, in its own lines.

    Returns:
        One sentence `NAME must be RULE, got VALUE: MEND.`, or the message itself if it is about something else.
    """
    if "No supported gpu backend" in text or "since the accelerator is not available" in text:
        return (
            "trainer.accelerator must be one that this machine has, got another: leave it out, or see `saccade doctor`"
            " for what is there."
        )
    keys = [found[1] for found in _KEY.finditer(text)]
    if not keys:
        return text
    name = ".".join(keys)
    if found := _NO_CLASS.search(text):
        return (
            f"{name} must be a class_path with init_args, got {found['option'].split('.')[0]} without them: write"
            f" `class_path: NameOfTheClass`, and its settings below `init_args:`."
        )
    leaf = text[text.rindex(f'Parser key "{keys[-1]}"') :]
    if first := _GIVEN.search(leaf):
        leaf = leaf[: first.end()]  # what follows is about the settings around it
    if "Option '" in leaf or "are required" in leaf or "class_path" in leaf:
        return text
    if single := _GOT.search(leaf):
        kinds, value = [single["kind"]], single["value"]
    if (several := _SUBTYPES.search(leaf)) and (given := _GIVEN.search(leaf)):
        kinds, value = _separated(several["kinds"]), given["value"]
    elif not single:
        return text
    named = "dot import path" in leaf and re.fullmatch(r"[\w.]+", value) and value not in ("true", "false")
    if named and not value.replace(".", "").isdigit():
        return text  # the name of a class, for which there are suggestions
    rules = list(dict.fromkeys(_described(kind) for kind in kinds))
    rule = " or ".join(item for item in rules if item != "null" or len(rules) == 1)
    mend = "correct it"
    if "a list" in rule and "got" not in value:
        mend = f"write brackets around it, as in --{name}='[{value}]'"
    return f"{name} must be {rule}, got {value}: {mend}."


def _separated(kinds: str) -> list[str]:
    """Split a list of types at its outer commas."""
    parts, depth = [""], 0
    for sign in kinds:
        depth += (sign in "[<") - (sign in "]>")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def _described(kind: str) -> str:
    """Name a type as a person would."""
    plain = re.sub(r"^<class '(.*)'>$", r"\1", kind)
    if choices := re.fullmatch(r"typing\.Literal\[(.*)\]", plain):
        return "one of " + choices[1].replace("'", "")
    outer = plain.split("[")[0]
    return _PLAIN.get(outer) or f"settings of {outer.rsplit('.', 1)[-1]}"
