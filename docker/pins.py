"""Print the pins of constraints.txt for an image: standard input to standard output.

The pin of torch may be replaced (argument 1). That of torchvision is left out then, and pip finds
the one that belongs to it.
"""

from __future__ import annotations

import re
import sys


def main() -> None:
    """Copy the pins, torch's replaced if a version is given."""
    version = sys.argv[1] if len(sys.argv) > 1 else ""
    for line in sys.stdin:
        name = re.split(r"[=<>!~ ;]", line, maxsplit=1)[0]
        if version and name == "torchvision":
            continue
        sys.stdout.write(f"torch=={version}\n" if version and name == "torch" else line)


if __name__ == "__main__":
    main()
