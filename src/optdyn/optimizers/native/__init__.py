"""Native code for XLA's CPU backend, built on the user's machine at its first use."""
