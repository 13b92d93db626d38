"""Programs built on the package, to be read and changed."""
