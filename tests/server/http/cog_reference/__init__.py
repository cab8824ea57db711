"""What the real Cog server answers, recorded once, so that ours can be compared with it anywhere."""
