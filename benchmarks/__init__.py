"""Side-by-side measurements and their committed rows; not in the wheel."""
