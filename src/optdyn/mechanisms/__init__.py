"""What an optimizer does beyond its linear modes, and how it came to do it."""
