"""How solvers make samples: grids of times, steps that are prepared, batches."""
