"""The floors: a module imports its own package and what lies below, never up, never sideways; and who may name whom."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pretrain"

COMMANDS = {"cli", "demo", "bench", "__main__"}
BELOW = {
    "errors": set[str](),
    "config": {"errors"},
    "runtime": {"config", "errors"},
    "data": {"runtime", "config", "errors"},
    "models": {"data", "runtime", "config", "errors"},
    "runs": {"models", "data", "runtime", "config", "errors"},
    "training": {"runs", "models", "data", "runtime", "config", "errors"},
    "embedding": {"runs", "models", "data", "runtime", "config", "errors"},
    "probing": {"embedding", "runs", "models", "data", "runtime", "config", "errors"},
}
"""What each package may import besides itself."""
NOUNS = {*BELOW, "__init__"}
FAMILIES = ("elmo", "bert")
HEAVY = {"torch", "lightning", "deepspeed", "datasets"}


def modules() -> dict[str, str]:
    """Source by dotted name below `pretrain`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path.read_text("utf-8")
    return found


def imports(source: str) -> list[str]:
    """Everything that a source imports, at the top and in functions, but not for type checking only."""
    names = []
    for node in _running(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
            assert node.level == 0, "imports are absolute"
    return names


def _running(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return []
    return [node, *(inner for child in ast.iter_child_nodes(node) for inner in _running(child))]


def top_imports(source: str) -> set[str]:
    """The packages that importing a source imports at once."""
    tops: list[ast.stmt] = [n for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom)]
    return {name.partition(".")[0] for name in imports(ast.unparse(ast.Module(tops, [])))}


def violations(module: str, source: str, verbs: set[str]) -> list[str]:
    """What a module imports against the floors."""
    wrong = []
    here = module.split(".")
    for name in imports(source):
        package, *rest = name.split(".")
        if package in {"lightning", "deepspeed"} and here[0] != "training" and module != "bench":
            wrong.append(f"{module}: {name}")
        if package != "pretrain" or not rest:
            continue
        there = rest[0]
        if here[0] in COMMANDS or (here == ["__init__"] and there in {"embedding", "training"}):
            continue
        own = there == here[0] and there in BELOW
        if here[0] in verbs:
            allowed = there in BELOW or there.startswith("__")
        else:
            allowed = own or there in BELOW.get(here[0], set())
        others = [family for family in FAMILIES if here[:2] != ["models", family]]
        if not allowed or (here[:1] == ["models"] and len(here) > 1 and rest[:1] == ["models"] and rest[1] in others):
            wrong.append(f"{module}: {name}")
    return wrong


def verbs(found: dict[str, str]) -> set[str]:
    """The modules at the top that are neither commands nor nouns."""
    return {name for name in found if "." not in name and name not in COMMANDS | NOUNS}


def test_every_module_keeps_to_its_floor() -> None:
    found = modules()
    assert len(found) > 30
    assert {"prepare", "train", "embed"} <= verbs(found)
    assert [line for name, source in found.items() for line in violations(name, source, verbs(found))] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("data.stream", "import pretrain.models.loss"),
        ("data.stream", "def f():\n    from pretrain.training import trainer"),
        ("config.run", "from pretrain.runtime.seeding import seed_of"),
        ("models.elmo.model", "from pretrain.models.bert import layers"),
        ("models.loss", "from pretrain.models.bert.layers import Layer"),
        ("models.family", "from pretrain.runs.folder import RunFolder"),
        ("runs.trained", "from pretrain.training.trainer import run_rank"),
        ("runs.folder", "import lightning"),
        ("embedding.embedder", "from pretrain.training.trainer import x"),
        ("training.trainer", "from pretrain.embedding import pooling"),
        ("train", "from pretrain.prepare import prepare"),
        ("data.prepare", "import lightning.pytorch"),
        ("errors", "from pretrain import config"),
    ],
)
def test_the_rule_finds_a_violation(module: str, source: str) -> None:
    assert len(violations(module, source, {"train", "prepare"})) == 1


def test_the_rule_allows_what_it_should() -> None:
    allowed = (
        "from pretrain.models.loss import exp\nfrom pretrain.data import stream\nimport pretrain.errors\nimport torch"
    )
    assert violations("training.trainer", allowed, {"train"}) == []
    assert violations("train", allowed, {"train"}) == []
    assert violations("cli", "from pretrain.train import train", {"train"}) == []


@pytest.mark.parametrize("package", ["config", "errors", "__init__", "cli", "__main__"])
def test_the_lowest_floor_and_the_command_line_import_nothing_heavy(package: str) -> None:
    sources = {name: source for name, source in modules().items() if name.split(".")[0] == package}
    assert sources
    for name, source in sources.items():
        assert not top_imports(source) & HEAVY, name
        if package in {"config", "errors"}:
            assert not {i.partition(".")[0] for i in imports(source)} & HEAVY, name


def named_families(source: str) -> set[str]:
    """The families that code names, in its identifiers and strings; docstrings and comments may give examples."""
    tree = ast.parse(source)
    documentation = {
        id(statement.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for statement in node.body
        if isinstance(statement, ast.Expr)
    }
    words: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            words.append(node.value)
        for field in ("id", "attr", "name", "module", "arg"):
            words.append(str(getattr(node, field, "")))
    return {family for family in FAMILIES for word in words if family in word.lower()}


NAMES_FAMILIES = {"config.models", "config.objectives", "models", "training.module", "__init__"}
"""The models' own config, the one list of families, and the public classes of each."""


def test_only_a_familys_own_modules_name_it() -> None:
    naming = {}
    for name, source in modules().items():
        parts = name.split(".")
        own = {parts[1]} if parts[0] == "models" and len(parts) > 1 and parts[1] in FAMILIES else set()
        if parts[0] not in COMMANDS and name not in NAMES_FAMILIES and (others := named_families(source) - own):
            naming[name] = others
    assert naming == {}


def test_the_rule_finds_a_name() -> None:
    assert named_families('x = kind == "elmo"') == {"elmo"}
    assert named_families("class BertThing: ...") == {"bert"}
    assert named_families('"""As ELMo does."""\nx = 1\n"""BERT too."""\n') == set()
