"""Tasks of the MONAI Label app: inference, training, scoring and active learning."""
