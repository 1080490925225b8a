"""Run folders: what is written there, how it is checked, and one module for each kind of run."""
