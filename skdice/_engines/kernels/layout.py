"""How much of what a kernel works on at a time: shared with what lays heads out for it."""

VECTOR_BYTES = 64
# One feature, or one logit, of all rows of a tile.
COLUMN_BYTES = 4 * VECTOR_BYTES
# Rows and columns of the squares that are transposed in registers.
SQUARE_BYTES = 32
# Rows and classes that are multiplied at a time: their sums, a vector each, are held in registers.
ROWS, CLASSES = 4, 5
