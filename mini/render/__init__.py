"""Scenes to pictures: signed distance fields, soft shadows and painted places, a batch at a time."""
