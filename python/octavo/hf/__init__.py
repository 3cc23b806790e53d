"""The parts of a config.json, each read and checked in a file of its own. octavo.hf_config joins them."""
