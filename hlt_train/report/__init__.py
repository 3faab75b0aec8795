"""What a person reads: tables for a terminal."""
