"""Models that generate pictures and video, with their objectives, data and training."""
