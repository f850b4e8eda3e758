"""A small ray marcher that draws the example concepts. Import order: paint shapes designs places render."""
