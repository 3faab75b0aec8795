"""Network architectures, one per file: an Equinox module built from `Inputs`, float or fixed point, and its lowering to a `Graph`."""
