"""The operations of a denoising step on rows: tensors without a batch dimension, whatever the image sizes."""
