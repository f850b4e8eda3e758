"""Image files: a folder's entries, their formats, decoding, colours and resizing."""
