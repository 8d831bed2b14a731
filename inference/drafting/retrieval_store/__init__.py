"""Looking up what followed the end of a text where it occurred before: indexes, tiers and stores on the disk."""
