"""Array and box maths. Never files, never a CRS."""
