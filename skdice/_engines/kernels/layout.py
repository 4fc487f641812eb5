"""Sizes of the pieces that the kernels work on, also for the modules that pack heads for them."""

VECTOR_BYTES = 64
# One feature, or one logit, of all rows of a tile takes this much memory.
COLUMN_BYTES = 4 * VECTOR_BYTES
# The rows and columns of a square that is transposed in registers take this much memory.
SQUARE_BYTES = 32
# So many rows and classes are multiplied at a time; the sum of a row and a class is one vector, and
# all these sums are held in registers.
ROWS, CLASSES = 4, 5
