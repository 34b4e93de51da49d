"""RFC 9457 problem documents: how the service says what went wrong."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["FieldProblem", "Problem"]


class FieldProblem(BaseModel):
    """One fault of a request body."""

    model_config = ConfigDict(extra="forbid")

    pointer: str = Field(description="JSON pointer to the value, such as #/budget/latency")
    detail: str


class Problem(BaseModel):
    """A problem document, media type `application/problem+json`."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(default="about:blank", description="a URI that names the kind of problem")
    title: str
    status: int = Field(ge=400, le=599)
    detail: str = ""
    instance: str | None = Field(default=None, description="path of the request")
    request_id: str | None = None
    errors: list[FieldProblem] = Field(default_factory=list)
    minimum: dict[str, float] | None = Field(
        default=None, description="infeasible: least achievable use per resource, in base units"
    )

    def extra(self) -> dict[str, Any]:
        """Return members that this version of the schema does not name."""
        return dict(self.model_extra or {})
