"""Programs that build this project; not part of the product."""
