"""Files that hold what may not be lost: written whole or not at all, read without believing them."""
