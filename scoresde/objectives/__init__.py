"""What networks are trained for: parametrisations, weightings, distributions of times."""
