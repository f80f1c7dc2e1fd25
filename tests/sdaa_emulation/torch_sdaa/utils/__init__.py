"""Helpers of the vendor's package."""
