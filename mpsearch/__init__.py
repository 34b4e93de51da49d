"""mpsearch: mixed-precision bit-allocation search."""
