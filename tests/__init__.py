"""The tests, and what measures. A package, so that no installed one called `tests` hides it."""
