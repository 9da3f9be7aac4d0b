"""What MONAI Label asks of an app: inference, training, scoring and active learning."""
