"""Data cards (YAML) and the generators that write toy ROOT files."""
