"""Land-cover maps from multispectral and panchromatic images."""
