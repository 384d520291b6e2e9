"""What is shipped, made from nothing: ``make organism``, ``make sanity``, ``make vocabulary-real``."""
