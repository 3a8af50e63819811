"""What the commands do once their options are known. These modules load torch, transformers and datasets."""
