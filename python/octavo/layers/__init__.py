"""Building blocks of models: modules over octavo.ops. A layer knows its own shapes and no request."""
