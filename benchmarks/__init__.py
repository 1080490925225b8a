"""What a meta-step costs: this engine, its peers and the machine's limit, side by side."""
