"""Sessions and leased locks with fencing tokens."""
