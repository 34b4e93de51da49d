"""Allocations in the languages of the tools that run them.

`export` writes an allocation for a target, `read` reads it back, `render` gives the text of those
that need no model, and `known_targets` lists the targets with what each can express. Importing this
package imports no torch; writers are imported on use.
"""

from mpsearch.export.catalog import find_target, known_targets
from mpsearch.export.checking import Objection, check_expressible, objections
from mpsearch.export.exporting import Rendered, export, read, render
from mpsearch.export.protocol import Exported, Target

__all__ = [
    "Exported",
    "Objection",
    "Rendered",
    "Target",
    "check_expressible",
    "export",
    "find_target",
    "known_targets",
    "objections",
    "read",
    "render",
]
