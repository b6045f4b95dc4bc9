"""Six generative models for cardiac MR images of hypertrophic cardiomyopathy."""
