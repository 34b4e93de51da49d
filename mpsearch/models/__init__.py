"""Models and data in: loading them safely, finding their layers."""
