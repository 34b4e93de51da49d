"""Pure optimisation for precision allocation: numpy in, allocation out."""
