"""Puts what a part left behind into summary.json: OUT WORK NAME CODE SECONDS."""

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


def read(path: Path) -> Any:
    """A JSON file, or the tests of a JUnit file as {name: passed | failed | skipped}."""
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    cases = ElementTree.parse(path).getroot().iter("testcase")
    return {case.attrib["name"]: _outcome(case) for case in cases}


def _outcome(case: ElementTree.Element) -> str:
    tags = {child.tag for child in case}
    return "skipped" if "skipped" in tags else "failed" if tags & {"failure", "error"} else "passed"


def main() -> None:
    """Adds the part to the summary and replaces the file in one go."""
    out, work, name, code, seconds = sys.argv[1:]
    file = Path(out) / "summary.json"
    summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    found = {}
    for path in sorted(Path(work).glob(f"{name}*.*")):
        try:
            found[path.stem.removeprefix(f"{name}-")] = read(path)
        except (ValueError, ElementTree.ParseError) as error:
            found[path.stem] = f"unreadable: {error}"
    summary[name] = {"exit_code": int(code), "seconds": int(seconds)} | found
    temporary = file.with_name(".summary.tmp")
    temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    temporary.replace(file)


if __name__ == "__main__":
    main()
