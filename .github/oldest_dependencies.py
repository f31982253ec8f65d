"""Print the oldest version that pyproject.toml allows of every dependency, as constraints for pip.

    python .github/oldest_dependencies.py > oldest.txt && pip install -c oldest.txt '.[test]'

The tools of the tests are left at their newest: what must work with old versions is what a user installs.
"""

import re
from pathlib import Path

TABLE = Path(__file__).resolve().parents[1] / "pyproject.toml"
TOOLS = {"test", "all", "peers"}
"""Extras that the package does not run on: what tests it, and what it is timed beside."""


def oldest() -> dict[str, str]:
    """Versions by distribution, of the dependencies and of every extra but tools."""
    import tomllib  # Python 3.11

    project = tomllib.loads(TABLE.read_text(encoding="utf-8"))["project"]
    extras = [lines for name, lines in project["optional-dependencies"].items() if name not in TOOLS]
    found = {}
    for line in (*project["dependencies"], *(line for lines in extras for line in lines)):
        match = re.fullmatch(r"([\w.-]+)>=([\d.]+)(?:;.*)?", line.replace(" ", ""))
        if match is None:
            raise SystemExit(f"{line!r}: expected NAME>=VERSION, of which the oldest version is plain")
        found[match[1]] = match[2]
    return found


if __name__ == "__main__":
    for name, version in oldest().items():
        print(f"{name}=={version}")
