"""Masks in files: folders of images and masks, their layouts, classes and codings."""
