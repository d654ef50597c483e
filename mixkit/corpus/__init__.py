"""Documents in: recipes, the files they name, readers for every format, and the domain that a document belongs to."""
