"""How messages travel: each transport runs every `hlt_train.strategies.Strategy` that it can, and refuses the others by name."""
