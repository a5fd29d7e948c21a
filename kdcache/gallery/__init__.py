"""A gallery of a cache: samples beside what the teacher said of them, in one HTML file."""
