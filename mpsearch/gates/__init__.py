"""Gates: conditions on an allocation that make a command fail, such as `accuracy_drop > 1%`.

Every name is looked up, whichever side of an `or` it stands on: a gate about something that was not
measured is an error, never a gate that passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpsearch.errors import GateError, InputError
from mpsearch.gates.conditions import Condition, names_in
from mpsearch.gates.figures import MEASURED, NAMES, Name, shown
from mpsearch.gates.grammar import GRAMMAR, LONGEST, Parser
from mpsearch.schemas import Allocation

__all__ = ["GRAMMAR", "MEASURED", "NAMES", "Gate", "check_gates", "parse_gate"]


@dataclass(frozen=True)
class Gate:
    """A condition as written.

    Attributes:
        text: What was written.
        condition: What it means.
    """

    text: str
    condition: Condition

    @property
    def names(self) -> list[Name]:
        """The figures it speaks of, in order, each once."""
        return list(dict.fromkeys(names_in(self.condition)))

    def holds(self, allocation: Allocation) -> bool:
        """Tell whether the condition is true of an allocation, so that the command fails.

        Args:
            allocation: The answer.

        Returns:
            Whether it is.
        """
        return self.condition.holds(allocation)

    def explained(self, allocation: Allocation) -> str:
        """Write the gate with the values of its names.

        Args:
            allocation: The answer.

        Returns:
            Such as `accuracy_drop>1% (accuracy_drop = 0.0234)`.
        """
        values = [f"{name} = {shown(name, allocation)}" for name in self.names]
        return f"{self.text} ({', '.join(values)})"


def parse_gate(text: str, *, verified: bool = True) -> Gate:
    """Read a gate.

    Args:
        text: What was written.
        verified: Whether the allocation will be run on the model.

    Returns:
        The gate.

    Raises:
        InputError: Not of the grammar, an unknown name, or one that will not be measured.
    """
    if len(text) > LONGEST:
        raise InputError(f"--fail-if is longer than {LONGEST} characters")
    gate = Gate(text.strip(), Parser(text).condition())
    unmeasured = [str(name) for name in gate.names if name.name in MEASURED]
    if unmeasured and not verified:
        raise InputError(
            f"--fail-if {text!r}: {', '.join(unmeasured)} cannot be known, because nothing will be "
            "run on the model"
        )
    return gate


def check_gates(gates: Sequence[Gate], allocation: Allocation) -> None:
    """Fail when a gate holds.

    Args:
        gates: The conditions.
        allocation: The answer.

    Raises:
        GateError: At least one holds; the message has all of them with their values.
    """
    held = [gate.explained(allocation) for gate in gates if gate.holds(allocation)]
    if held:
        raise GateError("the gate --fail-if holds: " + "; ".join(held))
