"""The renderer: signed distance fields, soft shadows and painted backgrounds, one batch of scenes at a time."""
