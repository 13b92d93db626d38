"""Label trees: files, names, and how they are built."""
