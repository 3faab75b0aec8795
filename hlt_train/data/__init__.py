"""From ROOT files to batches: what a card says (`card`), what files hold (`read`), which rows there are (`dataset`), in which order they come (`stream`)."""
