"""A trained student in use: exported to other formats, and asked for the classes of images."""
