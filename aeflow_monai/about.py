"""What the package says of itself."""

__version__ = "0.2.0"

DISCLAIMER = "Research use only. Not a medical device."
