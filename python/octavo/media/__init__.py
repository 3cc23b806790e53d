"""Audio beside a prompt: what users give, checked, and what an encoder takes. Needs no torch."""
