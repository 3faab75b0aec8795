"""Number formats and their quantisers: pure JAX, straight-through in the backward pass, on the grid in the forward (`docs/numbers.md`)."""
