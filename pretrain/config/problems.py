"""What is wrong with a config, in a user's words: a dotted path, what is expected there, and what was given."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

EXPECTED = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
    "model_type": "must be a section of options",
    "model_attributes_type": "must be a section of options",
    "dict_type": "must be a section of options",
    "too_short": "must not be empty",
    "too_long": "has too many items",
    "string_too_short": "must not be empty",
    "literal_error": "must be {expected}",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_pattern_mismatch": "does not match {pattern}",
}
"""What each of pydantic's errors asks for; the names in braces are the error's own."""

ABOUT_FORM = {"tuple_type", "model_type", "model_attributes_type", "string_type", "float_type", "too_short", "too_long"}
"""Those that an example answers."""

EXAMPLES = {
    "data.sources": """'data.sources=[{kind: text, files: "my/*.txt"}]'""",
    "data.sources.files": 'files: "my/*.txt", or files: [one.txt, two.txt]',
    "data.held_out": """data.held_out=0.02, or 'data.held_out=[{kind: text, files: "held-out/*.txt"}]'""",
    "data.held_out.files": 'files: "held-out/*.txt", or files: [one.txt, two.txt]',
    "evaluation.probes": "'evaluation.probes=[{task: pos, data: dev.conllu}]'",
    "model.filters": "'model.filters=[[1, 32], [2, 32], [3, 64]]', pairs of a width and a number of filters",
}
"""How options that are lists, or may be, are written; as on a command line, where the shell must not cut them up."""

MOVED = {
    **{
        f"model.{option}": f"objective.{option}"
        for option in (
            "max_sequence_length", "next_sentence", "mask_probability", "whole_word_masking",
            "short_sequence_probability", "packing", "pack_length", "unroll_length", "softmax", "num_negatives",
        )
    },
    **{f"model.{option}": f"compute.{option}" for option in ("attention", "compile", "activation_checkpointing")},
    "model.streams": "objective.backward_text",
    "tokenizer.words": "tokenizer.word_split",
}  # fmt: skip
"""Options of version 0.1.0 that have another place or name."""


def describe_problems(values: Any, errors: Iterable[Any], options: Collection[str]) -> list[str]:
    """One line per problem of `values`, of pydantic's errors about them, each starting with a dotted path.

    `options` are the dotted paths that there are, to name the one that was meant.
    """
    lines = [line for error in errors if not _follows(error) for line in _describe(values, error, options)]
    return list(dict.fromkeys(lines))


def suggest(path: str, options: Collection[str]) -> str:
    """What to write in the place of an option that does not exist, as the end of a message; nothing where unknown."""
    if path in MOVED:
        return f"; it is {MOVED[path]} now"
    *section, name = (part for part in path.split(".") if not part.isdecimal())
    if ".".join([*section, name]) in options:
        return f"; only another {'.'.join([*section, 'kind'])} has it"
    within = [option for option in options if option.split(".")[:-1] == section]
    elsewhere = [option for option in options if option.rpartition(".")[2] == name]
    close = (
        difflib.get_close_matches(".".join([*section, name]), within, 1, 0.8)
        or elsewhere
        or [option for option in options if difflib.get_close_matches(name, [option.rpartition(".")[2]], 1, 0.8)]
    )
    return f"; did you mean {close[0]}?" if close else ""


def _follows(error: Mapping[str, Any]) -> bool:
    """Whether an error only follows from another one, which says what is wrong."""
    # A list counts as too short when its items are wrong; the kinds of tokenizer and objective follow from the model's.
    without_kind = error["type"] == "union_tag_not_found" and error["loc"] in (("tokenizer",), ("objective",))
    return without_kind or (error["type"] == "too_short" and bool(error["input"]))


def _describe(values: Any, error: Mapping[str, Any], options: Collection[str]) -> list[str]:
    kind, context, given = error["type"], error.get("ctx", {}), error["input"]
    path = _path(values, error["loc"], kind)
    if kind == "value_error":
        return [": ".join([*([_dotted(path)] if path else []), line]) for line in str(context["error"]).splitlines()]
    if kind == "extra_forbidden":
        return [f"{_dotted(path)}: no such option{suggest(_dotted(path), options)}"]
    if kind == "missing":
        return [f"{_dotted(path)}: missing{_example(path)}"]
    if kind == "union_tag_not_found":
        unspaced = (
            next((key for key in given if str(key).startswith("kind:")), None) if isinstance(given, dict) else None
        )
        said = "missing" if unspaced is None else f"missing: put a space after the colon of {unspaced!r}"
        return [f"{_dotted([*path, 'kind'])}: {said}"]
    if kind == "union_tag_invalid":
        given, path = context["tag"], [*path, "kind"]
        message = f"must be one of {context['expected_tags']}"
    else:
        message = EXPECTED.get(kind, error["msg"]).format_map(context)
    shown = "a section of options" if isinstance(given, dict) else repr(given)
    example = _example(path) if kind in ABOUT_FORM else ""
    return [f"{_dotted(path)}: {message} (given: {shown}){example}"]


def _example(path: list[str]) -> str:
    """How an option that is a list is written, as the end of a message; nothing for another option."""
    example = EXAMPLES.get(".".join(part for part in path if not part.isdecimal()))
    return f", as in {example}" if example else ""


def _dotted(path: list[str]) -> str:
    return ".".join(path)


def _path(values: Any, location: tuple[int | str, ...], error: str) -> list[str]:
    """The path of an option in `values`, without the tags by which pydantic says which kind of a section it tried."""
    path: list[str] = []
    here, tagged = values, False
    for depth, part in enumerate(location):
        if isinstance(part, str):
            absent = not isinstance(here, dict) or part not in here
            missing = isinstance(here, dict) and error == "missing" and depth == len(location) - 1
            named = isinstance(here, dict) and part == here.get("kind") and not tagged
            if named or (absent and not missing):
                tagged = True
                continue
        path.append(str(part))
        inside = here[part] if _holds(here, part) else None
        here, tagged = inside, False
    return path


def _holds(values: Any, part: int | str) -> bool:
    if isinstance(values, dict):
        return part in values
    return isinstance(values, list) and isinstance(part, int) and part < len(values)
